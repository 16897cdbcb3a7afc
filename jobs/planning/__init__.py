"""Planning: the images a run processes, and likely problems with its masks."""
