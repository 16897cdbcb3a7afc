"""A job's input: its images as records, and their bytes. `kinds.KINDS` is the table of all kinds of input."""
