"""Where hosts meet: places that are well written, and who listens there."""

from __future__ import annotations

import pytest

from modelpack.crew import network
from modelpack.errors import UsageError


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:-1"])
def test_places_that_name_no_port_are_refused(text):
    with pytest.raises(UsageError, match="names no port"):
        network.split(text)


def test_hosts_that_nobody_knows_and_that_everybody_is_are_refused():
    with pytest.raises(UsageError, match="cannot be found"):
        network.resolve("no.such.host.invalid:1")
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        network.resolve("0.0.0.0:29400")
    assert network.resolve("127.0.0.1:29400") == ("127.0.0.1", 29400)
    assert network.interface("127.0.0.1") == "lo"


def test_who_has_the_address_listens_and_who_has_not_does_not():
    listener, ours = network.opened("127.0.0.1", 0)
    with listener:
        assert ours
        port = listener.getsockname()[1]
        assert network.opened("127.0.0.1", port) == (None, True)
    assert network.opened("192.0.2.1", 29400) == (None, False)
