"""Compare fusion heads on the user's data, with confidence intervals and significance tests."""
