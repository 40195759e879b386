"""Recipes: one command each, from public data to an engine."""
