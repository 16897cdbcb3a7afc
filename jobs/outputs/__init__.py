"""Reading an output: rows, masks, status, verification, export, garbage collection."""
