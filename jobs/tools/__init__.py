"""Tools around a run: cost estimates, benchmarks, and the demo's images."""
