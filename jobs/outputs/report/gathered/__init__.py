"""What a report is made of: figures of the rows, pictures, earlier nights, pace and cost."""
