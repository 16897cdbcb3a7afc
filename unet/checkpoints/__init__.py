"""Checkpoints that other programs wrote: read as data, converted to weights files."""
