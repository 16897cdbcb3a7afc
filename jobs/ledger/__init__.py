"""The stored records of a run and an output, and the right to change them."""
