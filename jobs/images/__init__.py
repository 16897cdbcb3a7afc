"""Bytes to pixels, in processes of their own."""
