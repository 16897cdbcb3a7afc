"""The command line: one module per group of commands; `main` has the table of all commands."""
