"""Checks of a machine and a job before a run. `table.CHECKS` is the table of all checks that need no Ray."""
