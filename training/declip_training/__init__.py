"""Makes projectors: data, model, losses, loop, evaluation."""
