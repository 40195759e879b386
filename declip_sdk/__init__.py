"""declip-sdk: trustworthy quality scores for photos. See README.md."""
