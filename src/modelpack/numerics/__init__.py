"""Everything that computes: torch, onnx and onnxruntime, knowing nothing of recipes, stores or consoles."""

import os

# torch's threads wait for each other by spinning unless this is set before it is imported: on a machine whose cores are
# busy elsewhere, training a small network then takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
