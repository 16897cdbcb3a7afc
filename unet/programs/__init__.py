"""Networks of any kind as programs: graphs of allowed ATen operators, as data, with tiles proven from the graph."""
