"""The same job on many machines, and the command line. The only package that knows Ray."""
