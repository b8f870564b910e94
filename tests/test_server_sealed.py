"""A server keeps to itself: it opens no connection, changes no file and runs no program, as strace sees it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import linear

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def sealed(monkeypatch):
    """The benchmark that traces images, with its neighbours importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("sealed", BENCHMARKS / "sealed.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sealed", found)
    spec.loader.exec_module(found)
    return found


TRACE = """\
100  execve("/usr/bin/python3.11", ["python3.11"], 0x7ff /* 9 vars */) = 0
100  openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3
101  openat(AT_FDCWD, "/data/a", O_WRONLY|O_CREAT|O_TRUNC, 0666 <unfinished ...>
100  sendto(5, "HTTP/1.1 200", 12, 0, NULL, 0) = 12
101  <... openat resumed>) = 4
100  openat(AT_FDCWD, "/read-only", O_RDWR|O_CREAT, 0666) = -1 EROFS (Read-only file system)
100  connect(6, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("9.9.9.9")}, 16) = -1 EINPROGRESS (now)
100  sendto(6, "x", 1, 0, {sa_family=AF_INET6, sin6_port=htons(1)}, 28) = 1
100  unlink("/data/a") = 0
100  rename("/no", "/way") = -1 ENOENT (No such file or directory)
100  execve("/bin/sh", ["sh"], 0x7ff) = 0
100  +++ exited with 0 +++
"""


def test_a_trace_is_read(sealed):
    found = sealed.read(TRACE)
    assert [line.split("(")[0] for line in found.outgoing] == ["100  connect", "100  sendto"]
    assert len(found.changed) == 2
    assert '"/data/a", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 4' in found.changed[0]
    assert "unlink" in found.changed[1]
    assert [line.partition('"')[2].partition('"')[0] for line in found.programs] == ["/usr/bin/python3.11", "/bin/sh"]
    assert found.calls == 10


@pytest.mark.parametrize("workers", [1, 2])
def test_serving_opens_no_connection_and_changes_no_file(sealed, tmp_path, workers):
    if shutil.which("strace") is None:
        pytest.skip("needs strace (apt-get install strace)")
    if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nobody may be traced here")
    model = linear(tmp_path / "model")
    ports = sealed.free_port(), sealed.free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
        "PYTHONDONTWRITEBYTECODE": "1",
        "MODELPACK_PORT": str(ports[0]),
        "MODELPACK_GRPC_PORT": str(ports[1]),
        "MODELPACK_WORKERS": str(workers),
        "MODELPACK_DRAIN_DELAY": "0",
    }
    command = [sys.executable, "-m", "modelpack.server", "--model", str(model), "--host", "127.0.0.1"]
    found, code = sealed.trace(command, tmp_path / "log", environment, 100, ports[1])
    assert code == 0
    assert found.outgoing == ()
    assert found.changed == ()
    assert len(found.programs) == 1, "itself"
    assert found.calls > 300
