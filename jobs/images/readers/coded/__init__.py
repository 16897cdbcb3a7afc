"""Readers of formats that imagecodecs decodes. Their headers are read first, for the limits of size."""
