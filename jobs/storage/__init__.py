"""Files and buckets under one contract. `schemes.SCHEMES` is the table of all kinds."""
