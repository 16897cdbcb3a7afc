"""Where the time of a run goes: stage timers and the bottleneck derived from them."""
