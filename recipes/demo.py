"""Run the quickstart recipe as far as this machine can take it; `make demo` calls this.

The image needs a base with Python. In this order: the recipe's own base when its registry answers; a base made here by
mmdebstrap; otherwise everything but the image is made, and what is missing is said.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Path("recipes/quickstart.yaml")
BASE = Path(".cache/base.tar")
REGISTRY = "https://registry-1.docker.io/v2/"


def registry_answers() -> bool:
    """Ask the registry of the recipe's base whether it is there; a refusal is an answer."""
    try:
        urllib.request.urlopen(REGISTRY, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def run(*command: str) -> int:
    """Show a command as the user would type it, and run it."""
    print(f"$ {' '.join(command)}", flush=True)
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run([str(program), *command[1:]], cwd=ROOT, check=False).returncode


def base_made_here() -> bool:
    """Make a base with mmdebstrap where there is one."""
    if (ROOT / BASE).exists():
        return True
    if shutil.which("mmdebstrap") is None:
        return False
    print("No registry answers, so the image's base is made here by mmdebstrap.", flush=True)
    return run("python", "-m", "modelpack.container.rootfs", str(BASE)) == 0


def main() -> int:
    """Run the demo; gives the exit code of `modelpack compress`."""
    if registry_answers():
        return run("modelpack", "compress", str(RECIPE))
    if base_made_here():
        return run("modelpack", "compress", str(RECIPE), "--set", f"stages.build.base=rootfs:{ROOT / BASE}")
    code = run("modelpack", "compress", str(RECIPE), "--until", "bench")
    print(
        "\nThe image was left out: no registry answers for its base, and mmdebstrap is not installed to make one.\n"
        "On Debian: apt-get install mmdebstrap, then `make demo` again; only the image is left to do."
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
