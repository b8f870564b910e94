"""Graphs brought into the form that quantization expects, and into forms that onnxruntime computes better."""
