"""The job file: its schema, how it is read, and when it is scheduled."""
