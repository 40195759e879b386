"""Agreement with people on public data sets, distortion ladders, the ledger of Test evaluations."""
