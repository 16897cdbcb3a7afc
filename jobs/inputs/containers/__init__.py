"""Files that hold many images. `formats.CONTAINERS` is the table of all kinds."""
