"""Engines that come with the package."""
