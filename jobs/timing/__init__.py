"""Where the time of a run goes: stage timers, and the bottleneck that follows from them."""
