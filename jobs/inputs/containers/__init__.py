"""Files of many images. `formats.CONTAINERS` is the table of all kinds."""
