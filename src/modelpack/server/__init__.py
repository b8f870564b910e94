"""The server: ONNX models behind HTTP, inside the image as `modelpack_server` and locally as `modelpack.server`.

It knows nothing of the rest of modelpack: a model is a directory with `model.onnx`, `signature.json` and `card.json`,
and every import inside it is relative, so that the package runs wherever it is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .faults import StartError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VERSION", "StartError", "serve"]

VERSION = "0.1.0"
"""What a client is told; inside the image nothing else of modelpack is there to ask."""


def serve(
    model_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int | None = None,
    card: dict[str, Any] | None = None,
) -> int:
    """Serve the models of one directory until SIGTERM or Ctrl-C.

    Args:
        model_dir: Holds `model.onnx` and `signature.json`, and `card.json` when `card` is None; or models as
            `NAME/VERSION/…`, see `catalog`.
        host: The address to listen on.
        port: The port; 0 takes a free one, which the log names.
        threads: Threads of one inference; None takes what the container's quota allows.
        card: What `/` shows; its `name`, `version`, `artifact` and `precision` also label answers and metrics.

    Returns:
        The exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        StartError: The model cannot be served, a limit in the environment is malformed, the port is taken, or
            the environment asks for several workers: a program that has threads cannot be forked safely.
    """
    from .settings import Settings
    from .start import start

    settings = Settings.read(model=str(model_dir), host=host, port=port, threads=threads)
    if settings.workers > 1:
        raise StartError(
            f"MODELPACK_WORKERS is {settings.workers}, and this server is one process: leave it out here; an image and "
            "`python -m modelpack.server` may have several"
        )
    return start(settings, card)
