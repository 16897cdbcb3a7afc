"""Work from commits alone: tables and masks derived from them, and what earlier runs left undone."""
