"""The report of a run: its figures, its pictures and its page, `report.html`."""
