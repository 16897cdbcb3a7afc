"""Corrected masks to better weights."""
