"""What earlier runs left undone: runs to resume, to keep or to set aside, and masks to be exported again."""
