"""Naive float64 formulas: plain Python loops over tokens and vocabulary, sharing no code with the library."""
