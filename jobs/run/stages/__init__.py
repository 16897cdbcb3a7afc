"""The stages of the pipeline, in the order that an image takes: fetch, decode, batch, segment, encode."""
