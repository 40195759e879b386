"""DeCLIP itself: open_clip towers, projectors, prompts, checkpoints."""
