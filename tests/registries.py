"""Registries that tests talk to: a small one that does as it is told, Debian's, and a line to it that breaks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from image_support import PYTHON, answers, free_port, image_files, program, tar_of, zipped
from modelpack.container import patience

PASSWORDS = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
"""An htpasswd file: the password is ``secret``."""


class Handler(BaseHTTPRequestHandler):
    """Serves ``answers`` by path, and takes uploads; with ``password`` only to who brings the token that it buys.

    ``busy`` lists statuses and headers that come before any real answer, ``cuts`` after how many bytes of a body the
    connection breaks, ``moved`` where a path has gone, ``held`` which one stops in the middle.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state, parts = self.server.state, urlsplit(self.path)
        state["seen"].append((self.command, self.path))
        state["headers"].append(dict(self.headers))
        if parts.path == "/token":
            return self.token(state, parse_qs(parts.query))
        if state["password"] and self.headers.get("Authorization") != f"Bearer T-{state['scope']}":
            realm = state["realm"] or f"http://127.0.0.1:{self.server.server_port}/token"
            asked = state["scope"] if self.command not in {"GET", "HEAD"} else state["scope"].removesuffix(",push")
            challenge = f'Bearer realm="{realm}",service="test",scope="{asked}"'
            return self.reply(401, b"{}", {"WWW-Authenticate": challenge})
        if state["busy"]:
            status, headers = state["busy"].pop(0)
            return self.reply(status, b'{"errors":[{"code":"BUSY","message":"later"}]}', headers)
        if parts.path in state["moved"]:
            status, place = state["moved"][parts.path]
            return self.reply(status, b"", {"Location": place})
        if "/blobs/uploads/" in parts.path:
            return self.upload(state, parts)
        status, data = state["answers"].get(parts.path, (404, b"{}"))
        return self.part(state, status, data)

    do_HEAD = do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815 - http.server looks for these names

    def token(self, state, query):
        login = base64.b64encode(b"me:" + state["password"].encode()).decode()
        right = self.headers.get("Authorization") == f"Basic {login}"
        if self.command == "POST":
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            right, query = form.get("refresh_token") == [state["password"]], form
        granted = " ".join(query.get("scope", [""]))
        body = {"token": f"T-{granted}", "expires_in": state["expires"]}
        self.reply(200 if right else 401, json.dumps(body if right else {}).encode())

    def part(self, state, status, data):
        """Answer with a body, or with what a Range asks of it; a cut ends it early."""
        headers = {"Content-Length": str(len(data) + state["promised"])}
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin and state["ranges"]:
            status, headers = 206, {"Content-Range": f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"}
            data = data[int(begin[1]) :]
            headers["Content-Length"] = str(len(data))
        if self.command == "GET" and self.path == state["held"]:
            return self.hold(state, data)
        if self.command == "GET" and "/blobs/" in self.path and state["cuts"]:
            data = data[: state["cuts"].pop(0)]
            self.close_connection = True
        self.reply(status, data, headers)
        self.close_connection = self.close_connection or bool(state["promised"])
        return None

    def hold(self, state, data):
        """Send half of a body, and the rest only when told to."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        state["release"].wait(60)
        return self.wfile.write(data[len(data) // 2 :])

    def upload(self, state, parts):
        """Keep what arrives, byte by byte, as the specification of uploads in chunks says."""
        query, got = parse_qs(parts.query), state["upload"]
        if self.command == "POST":
            if query.get("from", [""])[0] in state["mountable"]:
                return self.reply(201, b"", {"Location": "/there"})
            got.clear()
            return self.reply(202, b"", {"Location": f"{parts.path}1?state=0"})
        if self.command == "GET":
            return self.reply(204 if state["keeps"] else 404, b"", {"Range": f"0-{max(0, len(got) - 1)}"})
        begin = int(self.headers.get("Content-Range", "0-").partition("-")[0])
        if begin != len(got):
            return self.reply(416, b"{}")
        length = int(self.headers["Content-Length"])
        cut = state["cuts"].pop(0) if state["cuts"] else length
        got += self.rfile.read(min(cut, length))
        if cut < length:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        state["bodies"].append(length)
        if self.command == "PATCH":
            place = {"Location": f"{parts.path}?state={len(got)}", "Range": f"0-{len(got) - 1}"}
            return self.reply(202, b"", place)
        digest = f"sha256:{hashlib.sha256(got).hexdigest()}"
        if digest != query["digest"][0]:
            return self.reply(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}')
        state["answers"][f"/v2/a/b/blobs/{digest}"] = (200, bytes(got))
        return self.reply(201, b"")

    def reply(self, status, data, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing of clients that leave early."""


@contextmanager
def serving():
    """Run a small registry in a thread; gives its state, and its host:port."""
    server = Server(("127.0.0.1", 0), Handler)
    server.state = {
        "answers": {}, "seen": [], "headers": [], "bodies": [], "password": "", "scope": "repository:a/b:pull",
        "realm": "", "expires": 300, "promised": 0, "busy": [], "cuts": [], "moved": {}, "ranges": True, "keeps": True,
        "mountable": (), "upload": bytearray(), "held": "", "release": threading.Event(),
    }  # fmt: skip
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server.state, f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small registry, for a user who has logged in nowhere and does not wait between attempts."""
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with serving() as made:
        yield made


def publish(state, tag="1", index=True) -> str:
    """Put an image into the small registry; gives the manifest's digest."""
    files = image_files([tar_of(PYTHON)], compress=zipped)
    entry = json.loads(files["index.json"])["manifests"][0]
    for name, data in files.items():
        if name.startswith("blobs/"):
            digest = f"sha256:{name.rpartition('/')[2]}"
            state["answers"][f"/v2/a/b/blobs/{digest}"] = (200, data)
    manifest = files[f"blobs/sha256/{entry['digest'][7:]}"]
    state["answers"][f"/v2/a/b/manifests/{entry['digest']}"] = (200, manifest)
    other = {**entry, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "s390x"}}
    state["answers"][f"/v2/a/b/manifests/{tag}"] = (
        200,
        json.dumps({"schemaVersion": 2, "manifests": [other, entry]}).encode() if index else manifest,
    )
    return entry["digest"]


def log_in(folder, host, **entry):
    """Write what `docker login` would; by default the name ``me`` and the password ``secret``."""
    folder.mkdir(exist_ok=True)
    stored = entry or {"auth": base64.b64encode(b"me:secret").decode()}
    (folder / "config.json").write_text(json.dumps({"auths": {host: stored}}))


@contextmanager
def debian_registry(folder, *, passwords=""):
    """Run Debian's registry on loopback; gives host:port. Skips where docker-registry is missing."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (apt-get install docker-registry)")
    port = free_port()
    folder.mkdir(exist_ok=True)
    (folder / "htpasswd").write_text(passwords)
    auth = f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n" if passwords else ""
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {folder}/data}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    command = ["docker-registry", "serve", str(config)]
    with program(command, folder / "log", lambda: answers(port), env=environment) as process:
        if process is None:
            pytest.skip(f"docker-registry does not start: {(folder / 'log').read_text()[-300:]}")
        yield f"127.0.0.1:{port}"


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """Debian's registry with a password, and a user who has not logged in yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with debian_registry(tmp_path / "guarded", passwords=PASSWORDS) as host:
        yield host


class Line:
    """A line to a server that counts what the client sends, and breaks after so many bytes of a connection.

    Attributes:
        host: Where to call.
        sent: Bytes that the client has sent.
        breaks: After how many bytes each next connection breaks; it holds when none is left.
    """

    def __init__(self, target: str) -> None:
        self.sent, self.breaks, self._ends = 0, [], []
        self._target = target.rpartition(":")
        self._door = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._door.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for end in self._ends:  # a client may keep its connection for later
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self):
        calls = []
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                break
            server = socket.create_connection((self._target[0], int(self._target[2])))
            limit = self.breaks.pop(0) if self.breaks else None
            self._ends += [client, server]
            for arguments in ((client, server, limit, True), (server, client, None, False)):
                calls.append(threading.Thread(target=self._carry, args=arguments))
                calls[-1].start()
        for call in calls:
            call.join()

    def _carry(self, source, target, limit, counted):
        carried = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                carried += len(data)
                self.sent += len(data) * counted
                if limit is not None and carried > limit:
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if counted:
            source.close()
            target.close()


@pytest.fixture
def line():
    """Make lines; they are closed in the end."""
    made = []

    def make(target):
        made.append(Line(target))
        return made[-1]

    yield make
    for item in made:
        item.close()
