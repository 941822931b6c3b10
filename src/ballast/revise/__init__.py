"""Answers revised: by the model that wrote them (Self-Refine) or by one trained to revise (SEFT)."""
