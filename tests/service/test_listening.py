"""Ports that are taken, hosts that are elsewhere, and what a machine may be called."""

import socket

import pytest

from warp_core.errors import ConfigError
from warp_core.service.listening import host_names, is_loopback, listen


def test_any_free_port():
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", 0) as second:
        assert first.getsockname()[0] == "127.0.0.1"
        assert 0 != first.getsockname()[1] != second.getsockname()[1]


def test_answers_leave_at_once():
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # asyncio asks this before it sets TCP_NODELAY


def test_a_port_can_be_listened_on_again_at_once():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        server.close()  # this side waits out the connection
    with listen("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port
    client.close()


def test_a_port_in_use():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^port {port} of 127\.0\.0\.1 is in use: .* choose another port$"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 300])
def test_a_host_that_is_not_this_machine(host):
    with pytest.raises(ConfigError) as error:
        listen(host, 0)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("0.0.0.0", False), ("gpu", False)],
)
def test_loopback(host, is_local):
    assert is_loopback(host) is is_local


def test_names_of_an_address():
    assert host_names("gpu.example.org") == ("gpu.example.org",)
    assert host_names("10.1.2.3") == ("10.1.2.3",)
    assert host_names("fd00::1") == ("[fd00::1]",)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_names_of_every_address(host):
    names = host_names(host)
    assert {socket.gethostname(), "127.0.0.1"} <= set(names)
    assert not any("%" in name or "*" in name for name in names)
