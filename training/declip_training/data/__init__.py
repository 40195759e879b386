"""Records, readers and augmentations."""
