"""Class maps to files."""
