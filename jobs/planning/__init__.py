"""Which images a run does, how, and what it will find."""
