"""The command line: one module per group of commands, and the table of all commands in `main`."""
