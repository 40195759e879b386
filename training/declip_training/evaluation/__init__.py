"""Correlation with people, distortion ladders, the ledger of Test evaluations."""
