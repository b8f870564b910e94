"""Sums of products that do not fit into 16 bits, on processors that add them there."""
