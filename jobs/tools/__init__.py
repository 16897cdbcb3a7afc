"""The demo, the benchmarks and the estimate of a run's time and cost."""
