"""Image files: formats, and decoding in isolated processes. `formats.FORMATS` is the table of all formats."""
