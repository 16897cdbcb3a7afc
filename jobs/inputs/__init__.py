"""What an input names, and its bytes."""
