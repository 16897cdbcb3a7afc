"""Masks: their names, encoders and storage formats. `formats.FORMATS` is the table of all formats."""
