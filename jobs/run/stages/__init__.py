"""The stages of the pipeline, in the order of an image's path: fetch, decode, batch, segment, encode."""
