"""Fake quantization: torch models that compute in floats what integer kernels will compute in bytes."""
