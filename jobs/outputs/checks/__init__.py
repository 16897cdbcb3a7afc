"""The checks of a verification: one run at a time, then the output as a whole."""
