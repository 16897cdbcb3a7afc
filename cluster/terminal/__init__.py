"""What a person sees: results on stdout, progress on stderr. Knows nothing about commands and options."""
