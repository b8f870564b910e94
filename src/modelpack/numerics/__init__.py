"""Everything that computes: torch, onnx and onnxruntime, knowing nothing of recipes, stores or consoles."""
