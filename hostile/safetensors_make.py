"""The hostile weight files of hostile/safetensors/, written by hand: `python -m hostile.safetensors_make` writes them.

Layout of the format: 8 bytes little-endian header length, the header as JSON, the data.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["FOLDER", "HostileFile", "hostile_files", "page_of", "write_all"]

FOLDER = Path(__file__).resolve().parent / "safetensors"
DATA = bytes(range(8))
ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

Expected = Literal["refused", "read"]


@dataclass(frozen=True, kw_only=True)
class HostileFile:
    """A file: its bytes, what is wrong with it, and whether it may be read all the same."""

    name: str
    content: bytes
    line: str
    expected: Expected = "refused"


def hostile_files() -> list[HostileFile]:
    """Return all files, by name."""
    found = [*_lengths(), *_not_json(), *_keys(), *_shapes(), *_offsets(), *_dtypes(), *_names(), *_odd_but_sound()]
    return sorted(found, key=lambda one: one.name)


def write_all(folder: Path) -> None:
    """Write every file and the page that explains them."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in hostile_files():
        (folder / one.name).write_bytes(one.content)
    (folder / "README.md").write_text(page_of(hostile_files()), encoding="ascii")


def page_of(files: list[HostileFile]) -> str:
    """Return the README: a line on each file."""
    rows = [f"| `{one.name}` | {one.line} | {one.expected} |" for one in files]
    head = [
        "# Hostile weight files",
        "",
        "Made by `python -m hostile.safetensors_make`; the attack `headers` reads them.",
    ]
    return "\n".join([*head, "", "| file | what it is | must be |", "|---|---|---|", *rows]) + "\n"


def _whole(header: str | bytes, data: bytes = DATA, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("utf-8")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(name: str, content: bytes, line: str, expected: Expected = "refused") -> HostileFile:
    return HostileFile(name=f"{name}.safetensors", content=content, line=line, expected=expected)


def _entry(shape: str = "[2]", offsets: str = "[0,8]", dtype: str = '"F32"') -> str:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


def _lengths() -> Iterator[HostileFile]:
    yield _one("empty", b"", "no byte at all")
    yield _one("seven-bytes", bytes(7), "shorter than the length of the header")
    yield _one("length-zero", bytes(8), "a header of length 0")
    yield _one("length-max", b"\xff" * 8 + b"{}", "a header of 2^64 - 1 bytes")
    back = "a length that is -8, back to byte 0, to whoever reads it signed"
    yield _one("length-negative", struct.pack("<q", -8) + b"{}", back)
    yield _one("length-100mb", _whole("{}", b"", length=100_000_000), "a header of 100 MB that is not there")
    yield _one("length-one-more", _whole(_entry(), b"", length=len(_entry()) + 1), "the header ends after the file")
    yield _one("length-one-less", _whole(_entry(), length=len(_entry()) - 1), "the header lacks its last brace")
    big = struct.pack(">Q", len(_entry())) + _entry().encode() + DATA
    yield _one("length-big-endian", big, "the length written with its bytes in the other order")
    yield _one("pickle-inside", b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.", "a pickle under the name of safetensors")
    yield _one("zip-inside", b"PK\x03\x04" + bytes(60), "the beginning of a zip file, as torch.save writes it")


def _not_json() -> Iterator[HostileFile]:
    yield _one("not-json", _whole("this is no JSON"), "a header that is text, not JSON")
    yield _one("array", _whole(f"[{ENTRY}]"), "an array in place of the object")
    yield _one("string", _whole('"a"'), "a string in place of the object")
    yield _one("number", _whole("1"), "a number in place of the object")
    yield _one("null", _whole("null"), "null in place of the object")
    yield _one("two-objects", _whole(_entry() + _entry()), "two headers, one after the other")
    yield _one("trailing-comma", _whole(_entry()[:-1] + ",}"), "a comma before the last brace")
    yield _one("single-quotes", _whole(_entry().replace('"', "'")), "Python's notation, not JSON")
    yield _one("nul-in-header", _whole(_entry() + "\0"), "a NUL byte after the object")
    yield _one("bad-utf8", _whole(b'{"\xff\xfe":' + ENTRY.encode() + b"}"), "a name that is not UTF-8")
    yield _one("utf16", _whole(_entry().encode("utf-16")), "the header in UTF-16")
    yield _one("utf32", _whole(_entry().encode("utf-32")), "the header in UTF-32")
    yield _one("byte-order-mark", _whole(b"\xef\xbb\xbf" + _entry().encode()), "a byte order mark before the object")
    yield _one("deep", _whole("[" * 9000 + "]" * 9000), "arrays 9000 deep")
    yield _one("deep-objects", _whole('{"a":' * 3000 + "1" + "}" * 3000), "objects 3000 deep")
    yield _one("huge-number", _whole(_entry(offsets="[0," + "9" * 6000 + "]")), "a number of 6000 digits")


def _keys() -> Iterator[HostileFile]:
    other = '{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}'
    yield _one("name-twice", _whole(f'{{"a":{ENTRY},"a":{other}}}'), "one name for two shapes; readers take either")
    escaped = f'{{"a":{ENTRY},"\\u0061":{other}}}'
    yield _one("name-twice-escaped", _whole(escaped), "the same name twice, once written as \\u0061")
    twice = '{"a":{"dtype":"F32","shape":[2],"shape":[1,2],"data_offsets":[0,8]}}'
    yield _one("field-twice", _whole(twice), "two shapes for one tensor")
    yield _one("dtype-twice", _whole(_entry(dtype='"F32","dtype":"I32"')), "two dtypes for one tensor")
    yield _one("no-dtype", _whole('{"a":{"shape":[2],"data_offsets":[0,8]}}'), "no dtype")
    yield _one("no-shape", _whole('{"a":{"dtype":"F32","data_offsets":[0,8]}}'), "no shape")
    yield _one("no-offsets", _whole('{"a":{"dtype":"F32","shape":[2]}}'), "no data_offsets")
    yield _one("extra-field", _whole(_entry(dtype='"F32","file":"/etc/passwd"')), "a field that names another file")
    yield _one("entry-null", _whole('{"a":null}', b""), "null in place of a tensor")
    yield _one("entry-list", _whole('{"a":["F32",[2],[0,8]]}'), "a list in place of a tensor")
    yield _one("metadata-list", _whole(f'{{"__metadata__":[],"a":{ENTRY}}}'), "metadata that is a list")
    number = f'{{"__metadata__":{{"format":1}},"a":{ENTRY}}}'
    yield _one("metadata-number", _whole(number), "metadata whose value is no text")
    yield _one("metadata-twice", _whole(f'{{"__metadata__":{{}},"a":{ENTRY},"__metadata__":{{}}}}'), "metadata twice")
    yield _one("metadata-tensor", _whole(f'{{"__metadata__":{ENTRY}}}'), "a tensor that calls itself metadata")


def _shapes() -> Iterator[HostileFile]:
    yield _one("shape-negative", _whole(_entry(shape="[-1,-2]")), "two negative lengths whose product fits")
    yield _one("shape-float", _whole(_entry(shape="[2.0]")), "a length of 2.0")
    yield _one("shape-text", _whole(_entry(shape='["2"]')), "a length that is text")
    yield _one("shape-bool", _whole(_entry(shape="[true,2]")), "a length that is true")
    yield _one("shape-nan", _whole(_entry(shape="[NaN]")), "a length that is not a number")
    yield _one("shape-infinite", _whole(_entry(shape="[1e999]")), "a length beyond every float")
    yield _one("shape-null", _whole(_entry(shape="null")), "null in place of the shape")
    yield _one("shape-nested", _whole(_entry(shape="[[2]]")), "a shape within a shape")
    overflow = _entry(shape="[4294967296,4294967296,2]", offsets="[0,0]")
    yield _one("shape-overflow", _whole(overflow, b""), "2^65 elements, which are none if the product wraps around")
    wraps = "[9223372036854775809,2]"
    yield _one("shape-wraps", _whole(_entry(shape=wraps)), "a product that is 2 if it wraps around")
    yield _one("rank-4000", _whole(_entry(shape="[" + "1," * 3999 + "2]")), "4000 dimensions")
    empty = _entry(shape="[0,4611686018427387904,4611686018427387904]", offsets="[0,0]")
    yield _one("empty-but-huge", _whole(empty, b""), "no element, but strides beyond 64 bits")


def _offsets() -> Iterator[HostileFile]:
    yield _one("offsets-backwards", _whole(_entry(offsets="[8,0]")), "an end before the beginning")
    yield _one("offsets-negative", _whole(_entry(offsets="[-8,0]")), "a beginning within the header")
    yield _one("offsets-behind", _whole(_entry(offsets="[8,16]")), "data behind the end of the file")
    yield _one("offsets-three", _whole(_entry(offsets="[0,4,8]")), "three offsets")
    yield _one("offsets-float", _whole(_entry(offsets="[0.0,8.0]")), "offsets with a decimal point")
    yield _one("offsets-huge", _whole(_entry(offsets="[18446744073709551608,18446744073709551616]")), "around 2^64")
    yield _one("offsets-wide", _whole(_entry(offsets="[0,9]"), bytes(9)), "a byte more than the shape needs")
    overlap = f'{{"a":{ENTRY},"b":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}'
    yield _one("overlap", _whole(overlap), "two tensors share bytes")
    same = f'{{"a":{ENTRY},"b":{ENTRY}}}'
    yield _one("same-bytes", _whole(same), "two tensors in the same place")
    gap = f'{{"a":{ENTRY},"b":{{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}}}'
    yield _one("gap", _whole(gap, bytes(16)), "bytes that belong to no tensor, room for something else")
    yield _one("tail", _whole(_entry(), DATA + b"MZ another file behind"), "bytes behind the last tensor")
    yield _one("data-missing", _whole(_entry(), b""), "no data")
    yield _one("data-one-less", _whole(_entry(), DATA[:-1]), "the last byte is missing")


def _dtypes() -> Iterator[HostileFile]:
    for name in ("F8_E4M3", "F4", "U16", "C64"):
        size = {"F8_E4M3": 8, "F4": 16, "U16": 4, "C64": 1}[name]
        yield _one(f"dtype-{name.lower()}", _whole(_entry(shape=f"[{size}]", dtype=f'"{name}"')), f"{name} weights")
    yield _one("dtype-unknown", _whole(_entry(dtype='"F31"')), "a dtype that there is not")
    yield _one("dtype-lower", _whole(_entry(dtype='"f32"')), "a dtype in small letters")
    yield _one("dtype-number", _whole(_entry(dtype="32")), "a dtype that is a number")
    yield _one("dtype-list", _whole(_entry(dtype='["F32"]')), "a dtype that is a list")
    yield _one("dtype-wide", _whole(_entry(dtype='"F64"')), "a dtype too wide for its bytes")
    yield _one("dtype-long", _whole(_entry(dtype=json.dumps("F" * 5000))), "a dtype of 5000 letters")


def _names() -> Iterator[HostileFile]:
    names = {
        "empty": ("", "an empty name"),
        "nul": ("a\\u0000b", "a NUL in the name"),
        "newline": ("a\\nb", "a line break in the name"),
        "escape": ("\\u001b[2J", "an order to the terminal as a name"),
        "right-to-left": ("a\\u202eb", "a name that is shown backwards"),
        "surrogate": ("\\ud800", "half a character as a name"),
        "long": ("x" * 600, "a name of 600 letters"),
    }
    for name, (text, line) in names.items():
        yield _one(f"name-{name}", _whole(f'{{"{text}":{ENTRY}}}'), line)
    for name, (text, line) in {
        "path": ("../../etc/x", "a name that looks like a path; it stays a name"),
        "html": ("<img src=x onerror=alert(1)>", "a name that is HTML; it stays a name"),
        "dunder": ("__class__", "a name of Python's own; it stays a name"),
    }.items():
        yield _one(f"name-{name}", _whole(f'{{"{text}":{ENTRY}}}'), line, "read")


def _odd_but_sound() -> Iterator[HostileFile]:
    yield _one("sound", _whole(_entry()), "nothing wrong with it, so that the others are known to be at fault", "read")
    yield _one("no-tensor", _whole("{}", b""), "no tensor at all", "read")
    yield _one("spaces", _whole(_entry() + " " * 500), "500 spaces behind the object", "read")
    yield _one("scalar", _whole(_entry(shape="[]", offsets="[0,4]"), DATA[:4]), "a tensor of rank 0", "read")
    yield _one("no-element", _whole(_entry(shape="[3,0]", offsets="[0,0]"), b""), "a tensor without elements", "read")
    bits = struct.pack("<2f", float("nan"), float("-inf"))
    yield _one(
        "not-finite", _whole(_entry(), bits), "NaN and infinity: read here, refused where weights are mixed", "read"
    )


if __name__ == "__main__":
    write_all(FOLDER)
