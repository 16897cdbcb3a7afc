"""Readers of image formats, a module each."""
