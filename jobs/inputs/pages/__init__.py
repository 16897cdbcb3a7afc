"""Pages of image files with several images: their names, and how their files are read. Knows nothing of records."""
