"""What mask files say: codes of pixels, the labels they stand for, and the class of each."""
