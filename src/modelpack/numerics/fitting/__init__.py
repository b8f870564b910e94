"""Weights fitted anew, so that a layer that reads less gives what it gave before."""

from modelpack.numerics.fitting import moments, refit
from modelpack.numerics.fitting.layers import READABLE, Layer, inputs
from modelpack.numerics.fitting.moments import Reading

__all__ = ["READABLE", "Layer", "Reading", "inputs", "moments", "refit"]
