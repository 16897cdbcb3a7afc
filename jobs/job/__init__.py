"""The job file: its schema, how it is loaded, and its schedule."""
