"""Training of the U-Net, one optimizer step at a time."""
