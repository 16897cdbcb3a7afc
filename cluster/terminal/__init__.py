"""Terminal output: results on stdout, progress on stderr. Knows nothing about commands and options."""
