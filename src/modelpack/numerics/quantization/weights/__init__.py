"""Weights rounded alone, in blocks; activations stay in floating point."""
