"""modelpack: from a trained model to a small, fast, proven container."""

__version__ = "0.1.0"
