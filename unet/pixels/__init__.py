"""What a network sees: numbers as stored, the levels that normalise them, and batches of both."""
