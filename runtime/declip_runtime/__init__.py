"""Runs engines: numpy, Pillow and one backend; never torch."""
