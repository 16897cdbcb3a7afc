"""Export forms: one module each, listed in `forms.EXPORTS`."""
