"""Which layers stay in floating point so that a budget of quality is met in the least time."""
