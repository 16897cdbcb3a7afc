"""Masks: encoders and the formats in which they are stored. `formats.FORMATS` is the table of all formats."""
