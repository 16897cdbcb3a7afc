"""Fine-tuning: corrected masks in, better weights out."""
