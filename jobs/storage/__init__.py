"""The door to files and buckets."""
