"""Weights and activations with fewer bits: one algorithm a file, pure functions of graphs or of numbers."""
