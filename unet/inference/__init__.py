"""A network on a device: labels and statistics of batches and of tiles."""
