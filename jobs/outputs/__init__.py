"""Questions about a finished output: status, verification, export, garbage collection."""
