"""Pictures of an output for people: an image beside its mask, and contact sheets. Written as PNG files."""
