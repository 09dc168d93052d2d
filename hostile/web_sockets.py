"""Bytes over a socket, as attackers send them, and what comes back."""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["Answer", "ask", "head", "open_socket", "read_answer"]

PATIENCE_S = 10.0
MOST_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said before it closed the connection or had said all; status 0: nothing."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0


def head(
    verb: str, target: str, *lines: str, host: str | None = "127.0.0.1", body: str = "", version: str = "1.1"
) -> bytes:
    """Return a request; `lines` are more headers, and None leaves the Host header out."""
    named = [] if host is None else [f"Host: {host}"]
    sized = [f"Content-Length: {len(body.encode())}"] if body or verb in ("POST", "PUT", "PATCH") else []
    rows = [f"{verb} {target} HTTP/{version}", *named, *sized, *lines]
    return "\r\n".join([*rows, "", body]).encode("latin-1", errors="replace")


def open_socket(port: int, *, patience_s: float = PATIENCE_S) -> socket.socket:
    """Connect to a port of this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=patience_s)


def ask(port: int, request: bytes, *, patience_s: float = PATIENCE_S) -> Answer:
    """Send bytes and read one answer."""
    with open_socket(port, patience_s=patience_s) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        return read_answer(connection, patience_s=patience_s)


def read_answer(connection: socket.socket, *, patience_s: float = PATIENCE_S) -> Answer:
    """Read an answer to its end, as far as its length says where that is."""
    began, data = time.monotonic(), b""
    while not _is_whole(data) and len(data) < MOST_BYTES and time.monotonic() - began < patience_s:
        try:
            chunk = connection.recv(65536)
        except (TimeoutError, ConnectionResetError):
            break
        if not chunk:
            break
        data += chunk
    first, _, body = data.partition(b"\r\n\r\n")
    lines = first.decode("latin-1").split("\r\n")
    words = lines[0].split()
    return Answer(
        status=int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0,
        headers=_headers(lines[1:]),
        body=body,
        seconds=time.monotonic() - began,
    )


def _headers(lines: Sequence[str]) -> dict[str, str]:
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def _is_whole(data: bytes) -> bool:
    first, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    lines = first.decode("latin-1").split("\r\n")
    if " 101 " in f"{lines[0]} ":
        return True
    headers = _headers(lines[1:])
    if headers.get("transfer-encoding") == "chunked":
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(headers.get("content-length", 0)) and "content-length" in headers
