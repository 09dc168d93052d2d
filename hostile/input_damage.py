"""Ways to damage a JSON or TOML file: by hand, and by chance with a fixed seed."""

import json
import random
import re
from collections.abc import Iterator

__all__ = ["damaged_by_chance", "damaged_by_hand"]

VALUES = (
    "null", "true", "0", "-1", "1.5", "1e999", "NaN", "-Infinity", "9" * 30, "9" * 6000, '""', '"x"', '"\\ud800"',
    '"a\\u0000b"', '"\\n"', "[]", "{}", '[[["deep"]]]', '"' + "x" * 20_000 + '"', "1" + "0" * 400,
)  # fmt: skip


def damaged_by_hand(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, content) for everything that can be wrong with any JSON file."""
    yield "empty", b""
    yield "cut in half", whole[: len(whole) // 2]
    yield "last byte missing", whole.rstrip()[:-1]
    yield "NUL bytes", bytes(len(whole))
    yield "binary", b"\x93NUMPY\xff\xfe" + bytes(range(256))
    yield "UTF-16", whole.decode("utf-8").encode("utf-16")
    yield "byte order mark", b"\xef\xbb\xbf" + whole
    yield "twice", whole + whole
    yield "nested 100,000 deep", b"[" * 100_000 + b"]" * 100_000
    yield "objects 5,000 deep", b'{"a":' * 5_000 + b"1" + b"}" * 5_000
    yield "HTML", b"<html><body>404 Not Found</body></html>"
    for text in ("null", "true", "1", "NaN", "Infinity", "9" * 6000, '"text"', "[]", "{}", "[1]", "[{}]", '{"a": 1}'):
        yield f"only {text[:20]}", text.encode()
    yield from _fields(whole)


def _fields(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Every field of the object missing, given twice, and of each wrong type."""
    document = _parsed(whole) or _parsed(whole.splitlines()[0])
    if not isinstance(document, dict):
        return
    for name in document:
        yield f"{name} is missing", json.dumps({key: value for key, value in document.items() if key != name}).encode()
        rest = json.dumps(document)[1:]
        yield f"{name} is there twice", f"{{{json.dumps(name)}: null, {rest}".encode()
        for value in VALUES:
            marked = json.dumps({**document, name: "@@"})
            yield f"{name} is {value[:20]}", marked.replace('"@@"', value).encode()


def _parsed(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def damaged_by_chance(whole: bytes, *, number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `number` random damages: bytes, and values replaced by others."""
    chance = random.Random(seed)
    text = whole.decode("utf-8")
    # Values only: what follows a colon, a bracket or a comma.
    values = [
        found.span(1) for found in re.finditer(r'[:=\[,]\s*("(?:[^"\\]|\\.)*"|-?[\d.eE+-]+|true|false|null)', text)
    ]
    for index in range(number):
        if values and chance.random() < 0.6:
            start, stop = chance.choice(values)
            value = chance.choice(VALUES)
            yield (
                f"change {index}: {text[start:stop][:30]} -> {value[:20]}",
                (text[:start] + value + text[stop:]).encode(),
            )
            continue
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            if chance.random() < 0.4:
                data[at] ^= 1 << chance.randrange(8)
            elif chance.random() < 0.5:
                del data[at : at + chance.randint(1, 20)]
            else:
                data[at:at] = chance.choice((b"\0", b"{", b'"', b"\xff", b"9" * 400, b","))
            data = data or bytearray(b" ")
        yield f"change {index}: bytes", bytes(data)
