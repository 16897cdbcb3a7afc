"""What storage holds of a run and of an output, and who may change it."""
