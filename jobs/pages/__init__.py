"""Self-contained HTML pages: one look, charts as SVG, pictures inside the file. Knows nothing about runs."""
