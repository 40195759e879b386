"""Does the control of generated pictures work? DP-Adapter beside the plain IP-Adapter, measured by models."""
