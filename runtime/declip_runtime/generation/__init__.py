"""Generating pictures with an engine of kind ``unet``: text, and the look or the content of reference images."""
