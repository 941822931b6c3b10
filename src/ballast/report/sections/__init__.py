"""The report's sections: the answer, the results, the curves, the settings."""
