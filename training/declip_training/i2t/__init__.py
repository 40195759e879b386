"""I&2T: images with one perceptual and one semantic description each (arXiv 2503.02206, section 3)."""
