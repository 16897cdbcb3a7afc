"""Processes for foreign bytes: no credentials, no files, no network, and limits on memory and time."""
