"""Where the server listens and every limit it keeps, from arguments and the environment."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any, Self

from .faults import StartError

if TYPE_CHECKING:
    from collections.abc import Mapping

PORTS = ("MODELPACK_PORT", "AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT")
PLATFORMS = {
    "port": PORTS,
    "health_route": ("MODELPACK_HEALTH_ROUTE", "AIP_HEALTH_ROUTE"),
    "predict_route": ("MODELPACK_PREDICT_ROUTE", "AIP_PREDICT_ROUTE"),
}
"""Settings that platforms give in variables of their own; the first that is there wins."""
_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=/-]*")


def _limit(default: float, least: float, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"least": least, "help": help_text})


def _choice(options: tuple[str, ...], help_text: str) -> Any:
    return dataclasses.field(default=options[0], metadata={"options": options, "help": help_text})


def _text(help_text: str, *, secret: bool = False) -> Any:
    return dataclasses.field(default="", repr=not secret, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every field but `port` and `threads` is also an environment variable: `max_body` is `MODELPACK_MAX_BODY`."""

    model: str = "/opt/modelpack/model"
    host: str = "0.0.0.0"  # noqa: S104 - a container is reached from outside; its network decides from where
    port: int = 8080
    threads: int | None = None
    grpc_port: int | None = dataclasses.field(
        default=None, metadata={"help": "port for gRPC, 0 for any free one; without it there is none"}
    )
    health_route: str = ""
    predict_route: str = ""
    device: str = _choice(("cpu", "cuda"), "where models run; cuda never falls back to cpu")
    workers: int = _limit(1, 1, "processes that serve on one port, each with its own models, queue and limits")
    concurrency: int = _limit(1, 1, "inferences that run at once")
    max_batch: int = _limit(32, 1, "rows in one run that requests share; 1 gives each a run of its own")
    queue: int = _limit(64, 0, "requests that may wait for an inference; more are answered 429")
    allow_loading: int = _limit(0, 0, "1 lets clients load, unload and roll back models")
    max_body: int = _limit(32 * 2**20, 1, "bytes of a request body")
    max_rows: int = _limit(4096, 1, "rows in one request")
    max_pixels: int = _limit(25_000_000, 1, "pixels of an image, and of a request's images when they are prepared")
    max_text: int = _limit(1_000_000, 1, "characters of a request's texts, where texts become tokens")
    max_head: int = _limit(16384, 256, "bytes of a request line with its headers")
    max_connections: int = _limit(1024, 1, "open connections")
    head_timeout: float = _limit(10.0, 0.05, "seconds for a client to send its request line and headers")
    body_timeout: float = _limit(30.0, 0.05, "seconds for a client to send its body, and to take any of an answer")
    idle_timeout: int = _limit(75, 1, "seconds that an idle connection is kept")
    deadline: float = _limit(60.0, 0.001, "seconds from a request's arrival to its answer; later is 504")
    drain_delay: float = _limit(1.0, 0.0, "seconds after SIGTERM in which new work is still served")
    drain_timeout: int = _limit(25, 1, "seconds that work in flight gets to finish after that")
    token: str = _text("what clients must show as a bearer token; 16 characters at least", secret=True)
    token_file: str = _text("a file with such tokens, one a line; SIGHUP reads it again")
    tls_cert: str = _text(
        "a PEM file with the server's certificate and those it hangs on; HTTP and gRPC speak TLS then"
    )
    tls_key: str = _text("a PEM file with its private key")
    tls_client_ca: str = _text("a PEM file with the authorities that vouch for clients, which must show a certificate")
    open_metrics: int = _limit(0, 0, "1 answers /metrics without a token, and without a certificate")
    log_format: str = _choice(("auto", "json", "text"), "form of the log: auto is text at a terminal, else json")
    log_level: str = _choice(("info", "debug", "warning", "error"), "the least that the log has")
    log_requests: int = _limit(0, 0, "1 writes a line for each request")

    @property
    def guarded(self) -> bool:
        """Whether clients must show a token."""
        return bool(self.token or self.token_file)

    @property
    def secured(self) -> bool:
        """Whether connections are TLS."""
        return bool(self.tls_cert)

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """Take each setting from `given` unless None, then from the environment, then from its default.

        Raises:
            StartError: For a value that is no number, is too small, or is none of the options.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            names = PLATFORMS.get(field.name, (f"MODELPACK_{field.name.upper()}",))
            name = next((candidate for candidate in names if environ.get(candidate)), names[0])
            if given.get(field.name) is not None:
                values[field.name] = given[field.name]
            elif environ.get(name):
                values[field.name] = _parse(name, environ[name], field)
        settings = cls(**values)
        if not 0 <= settings.port <= 65535:
            raise StartError(f"the port is {settings.port}: give one from 1 to 65535, or 0 for any free one")
        if settings.grpc_port and (settings.grpc_port > 65535 or settings.grpc_port == settings.port):
            raise StartError(f"the port for gRPC is {settings.grpc_port}: give another one than HTTP's, to 65535")
        if settings.threads is not None and settings.threads < 1:
            raise StartError(f"{settings.threads} threads cannot run a model: give 1 or more")
        if settings.workers > 1 and settings.grpc_port == 0:
            raise StartError("MODELPACK_GRPC_PORT=0 would give each worker a port of its own: name one for all")
        if bool(settings.tls_cert) != bool(settings.tls_key) or (settings.tls_client_ca and not settings.tls_cert):
            raise StartError("TLS needs both MODELPACK_TLS_CERT and MODELPACK_TLS_KEY, with or without a client's CA")
        for route in (settings.health_route, settings.predict_route):
            if route and not _PATH.fullmatch(route):
                raise StartError(f"the route {route[:80]!r} is not a plain path such as /predict")
        return settings


def _parse(name: str, text: str, field: dataclasses.Field[Any]) -> Any:
    if field.type == "str":
        options = field.metadata.get("options", (text,))
        if text not in options:
            raise StartError(f"{name}={text!r} is none of {', '.join(options)}")
        return text
    kind = float if field.type == "float" else int
    try:
        value = kind(text)
    except ValueError:
        raise StartError(f"{name}={text!r} is not a {'whole ' if kind is int else ''}number") from None
    least = field.metadata.get("least", 0)
    if not least <= value < float("inf"):
        raise StartError(f"{name}={text!r} is out of range: the least is {least}")
    return value


def describe() -> str:
    """List the environment variables that set limits, one a line."""
    limits = [field for field in dataclasses.fields(Settings) if "help" in field.metadata]
    return "\n".join(
        f"  MODELPACK_{field.name.upper():<16} {field.metadata['help']}"
        + ("" if field.default in ("", None) else f" (default {field.default})")
        for field in limits
    )
