"""Sockets to listen on, and the names that requests may call this machine by."""

import errno
import ipaddress
import socket

import psutil

from warp_core.errors import ConfigError

__all__ = ["host_names", "is_loopback", "listen"]


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Args:
        host: an address or a name of this machine; 0.0.0.0 for all.
        port: 0 for any that is free.

    Raises:
        ConfigError: the port is in use or not for everyone, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # asyncio switches Nagle's algorithm off only where the protocol is named; with it on an answer takes 44 ms.
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{host[:80]!r} is no address of this machine: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(_refused(host, port, error)) from error
    return listener


def _refused(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop what listens there, or choose another port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} is not for every user: choose one above 1023"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_names(host: str) -> tuple[str, ...]:
    """Return what requests may call this machine by when it listens on `host`: for 0.0.0.0 and :: all it goes by."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return (host,)
    if not address.is_unspecified:
        return (_bracketed(host),)
    found = {socket.gethostname(), socket.getfqdn()}
    for addresses in psutil.net_if_addrs().values():
        # A link-local address comes with the name of its interface (fe80::1%eth0), which no Host header has.
        found.update(
            _bracketed(one.address.partition("%")[0])
            for one in addresses
            if one.family in (socket.AF_INET, socket.AF_INET6)
        )
    return tuple(sorted(found))


def _bracketed(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address
