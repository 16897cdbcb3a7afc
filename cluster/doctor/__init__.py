"""Checks of Ray before a run. `table.CHECKS` is the table of all checks, those of the machine and the job included."""
