"""`python -m modelpack_server`: the image's entry point, and its health check."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from .faults import StartError
from .settings import Settings, describe

_FOLDER = Path(__file__).parent / "monitoring"
_MONITORING = {"dashboard": _FOLDER / "dashboard.json", "alerts": _FOLDER / "alerts.yml"}


def main(arguments: list[str] | None = None) -> int:
    """Serve, or ask a running server whether it is ready; gives the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.monitoring:
            print(_MONITORING[options.monitoring].read_text("utf-8"), end="")  # noqa: T201 - this is the command line
            return 0
        settings = Settings.read(model=options.model, host=options.host, port=options.port, threads=options.threads)
        if options.healthcheck:
            return _healthcheck(settings)
        from .start import start

        return start(settings)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modelpack_server",
        description="Serve ONNX models over HTTP.",
        epilog=f"limits, from the environment:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=["serve"], help="SageMaker runs images with this word")
    parser.add_argument("--model", help="directory with model.onnx and signature.json (MODELPACK_MODEL)")
    parser.add_argument("--host", help="address to listen on (MODELPACK_HOST, default 0.0.0.0)")
    parser.add_argument("--port", type=int, help="port (MODELPACK_PORT, default 8080)")
    parser.add_argument("--threads", type=int, help="threads of one inference (default: what the quota allows)")
    parser.add_argument("--healthcheck", action="store_true", help="ask the server on this port whether it is ready")
    parser.add_argument(
        "--monitoring", choices=_MONITORING, help="print a dashboard for Grafana, or alerts for Prometheus"
    )
    return parser


def _healthcheck(settings: Settings) -> int:
    """Give 0 when the server on this machine answers that it is ready, within three seconds; else 1."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - not listening here
    try:
        with socket.create_connection((host, settings.port), timeout=3) as connection:
            speaking = _secured(connection) if settings.secured else connection
            speaking.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: speaking.recv(4096), b""))
    except OSError as error:
        print(f"not ready: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    print(body.decode("utf-8", "replace"))  # noqa: T201 - this is the command line
    return 0 if head.split(b" ")[1:2] == [b"200"] else 1


def _secured(connection: socket.socket) -> socket.socket:
    """Speak TLS, without a client's certificate, with whatever certificate the server has: it is this machine's own."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)


if __name__ == "__main__":
    sys.exit(main())
