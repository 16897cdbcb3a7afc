"""Running jobs on many machines with Ray, and the command line. The only package importing Ray."""
