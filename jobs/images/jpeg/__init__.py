"""JPEG as data: its markers, and strict verdicts on damage. Knows no reader."""
