"""From a job and its weights to a network ready on a device."""
