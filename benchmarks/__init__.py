"""Measurements: one command each, JSON out, targets computed from the rows."""
