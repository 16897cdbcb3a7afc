"""Weights of the built-in models, with their cards."""
