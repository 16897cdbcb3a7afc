"""A first job file, written from a look at the images and the weights."""
