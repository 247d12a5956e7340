"""Probabilities and decisions worth trusting: calibration, prediction sets, abstention."""
