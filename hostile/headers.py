"""Weight files that lie: hand-made ones, thousands of mutations of sound ones, and a cut at every byte."""

import json
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from hostile.input_child import Found, limit_memory, watched
from hostile.outcomes import Outcome, Tally
from hostile.safetensors_make import FOLDER, hostile_files, page_of
from warp_core.errors import CheckpointError
from warp_core.weights.headers import read_header
from warp_core.weights.tensor_io import TensorReader

__all__ = ["attack", "cases"]

SEED = 20260
MUTATIONS, QUICK_MUTATIONS = 20_000, 600
MOST_S = 2.0
ANSWER_S = 60.0
EXTRA_BYTES = 1_500_000_000
SOUND = "sound.safetensors"  # the one of the hand-made files that nothing is wrong with
NUMBERS = (
    "-1", "0", "1", "2", "7", "8", "9", "4096", "2147483648", "9223372036854775807", "9223372036854775808",
    "18446744073709551615", "1" + "0" * 40, "1.0", "1e2", "-0", "1e999", "NaN", "Infinity", "true", "null", '"8"', "[]",
)  # fmt: skip


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """See hostile/README.md."""
    yield _committed()
    line = "in one line that names the file, in 2 s"
    tallies = {
        "sound": Tally("sound files, for comparison", promise="P4", holds="read as safetensors reads them"),
        "hand": Tally("hand-made files", promise="P4", holds=f"read as safetensors reads it or refused {line}"),
        "giant": Tally("giant headers", promise="P4", holds=f"read or refused {line} and within 1.5 GB of memory"),
        "cut": Tally("a file cut at every byte", promise="P4", holds=f"refused {line}"),
        "mutated": Tally(
            "mutated files", promise="P4", holds=f"read where and as safetensors reads it, or refused {line}"
        ),
    }
    reads = {group: _Reads() for group in tallies}
    number = QUICK_MUTATIONS if quick else MUTATIONS
    arguments = {"place": str(place), "number": number, "small": quick}
    for found in watched("hostile.headers:cases", arguments, answer_s=ANSWER_S):
        if "problem" in found:
            tallies["mutated"].check(False, found["problem"])
            continue
        reads[found["group"]].add(found)
        tallies[found["group"]].check(not found["fault"], f"{found['case']}: {found['fault']}")
    for group, tally in tallies.items():
        yield tally.outcome(str(reads[group]))


@dataclass
class _Reads:
    """What was read and not refused."""

    read: int = 0
    slowest_s: float = 0.0

    def add(self, found: Found) -> None:
        self.read += found["read"]
        self.slowest_s = max(self.slowest_s, found["seconds"])

    def __str__(self) -> str:
        return f"{self.read} read, slowest {self.slowest_s:.2f} s"


def _committed() -> Outcome:
    tally = Tally(
        "files as made", promise="", holds="the files in hostile/safetensors are those that the script writes"
    )
    files = hostile_files()
    for one in files:
        path = FOLDER / one.name
        tally.check(path.is_file() and path.read_bytes() == one.content, f"{one.name} differs from what is written")
        tally.check(len(one.content) < 20_000, f"{one.name} has {len(one.content)} bytes")
    page = FOLDER / "README.md"
    tally.check(page.is_file() and page.read_text(encoding="ascii") == page_of(files), "README.md differs")
    strangers = {path.name for path in FOLDER.iterdir()} - {one.name for one in files} - {"README.md"}
    tally.check(not strangers, f"not of the script: {sorted(strangers)}")
    return tally.outcome(f"{len(files)} files")


def cases(place: str, number: int, small: bool) -> Iterator[Found]:
    """Read every hostile file, in a process of its own that may take 1.5 GB more than it has at first."""
    load_bytes(save_bytes({"a": torch.ones(2)}))
    limit_memory(EXTRA_BYTES)
    groups = {
        "sound": _sound_cases(Path(place) / "sound.safetensors"),
        "hand": _hand_made_cases(),
        "giant": _giant_cases(Path(place) / "giant.safetensors", small=small),
        "cut": _truncated_cases(Path(place) / "cut.safetensors"),
        "mutated": _mutated_cases(Path(place) / "mutated.safetensors", number=number),
    }
    for group, each in groups.items():
        for found in each:
            yield {"group": group} | found


def _sound_cases(path: Path) -> Iterator[Found]:
    """What the others are made of, so that a refusal of theirs is known to come of the damage."""
    for number, data in enumerate(_bases()):
        path.write_bytes(data)
        yield _looked_at(path, f"base {number}", expected="read")
    yield _looked_at(FOLDER / SOUND, SOUND, expected="read")


def _hand_made_cases() -> Iterator[Found]:
    for one in hostile_files():
        if one.name != SOUND:
            yield _looked_at(FOLDER / one.name, one.name, expected=one.expected)


def _truncated_cases(path: Path) -> Iterator[Found]:
    whole = _bases()[0]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        yield _looked_at(path, f"{length} bytes", expected="refused")


def _giant_cases(path: Path, *, small: bool) -> Iterator[Found]:
    """Headers that cost time or memory; too large to be committed."""
    for name, header in _giants(small=small):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        del header
        yield _looked_at(path, name, tensors=False)
    path.unlink()
    # Two terabytes that take no room: nothing may read them just to know what is there.
    entry = b'{"a":{"dtype":"F32","shape":[549755813888],"data_offsets":[0,2199023255552]}}'
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(entry)) + entry)
        file.truncate(8 + len(entry) + 2**41)
    yield _looked_at(path, "two terabytes of nothing", tensors=False)


def _giants(*, small: bool) -> Iterator[tuple[str, bytes]]:
    yield "100k deep", b"[" * 100_000 + b"]" * 100_000
    yield "100k objects deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    tiny = '"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    number = 20_000 if small else 500_000
    yield f"{number} tiny tensors", ("{" + ",".join(tiny % i for i in range(number)) + "}").encode()
    million = 1 if small else 30
    yield f"{million} M empty objects", b'{"a":[' + b"{}," * (million * 1_000_000) + b"{}]}"
    yield f"{million} M empty arrays", b'{"a":[' + b"[]," * (million * 1_000_000) + b"[]]}"
    yield f"a name of {million} MB", b'{"' + b"x" * (million * 1_000_000) + b'":1}'
    yield f"a number of {million} M digits", b'{"a":' + b"9" * (million * 1_000_000) + b"}"
    yield f"{million * 3} MB of spaces", b"{" + b" " * (million * 3_000_000) + b"}"


def _mutated_cases(path: Path, *, number: int) -> Iterator[Found]:
    chance, bases = random.Random(SEED), _bases()
    for index in range(number):
        data, how = _mutated(bases[index % len(bases)], chance)
        path.write_bytes(data)
        yield _looked_at(path, f"mutation {index} ({', '.join(how)})")


def _mutated(base: bytes, chance: random.Random) -> tuple[bytes, list[str]]:
    """A file that is not its base, and what was done to it; what happens to change nothing is drawn again."""
    how: list[str] = []
    data, wanted = base, chance.choice((1, 1, 1, 2, 4))
    while len(how) < wanted or data == base:
        mutate = chance.choice(MUTATORS)
        changed = mutate(data, chance)
        if changed != data:
            data = changed
            how.append(mutate.__name__.strip("_"))
    return data, how


def _bases() -> list[bytes]:
    """Sound files: small first, then the dtypes, many tensors, metadata, no metadata, empty tensors."""
    chance = torch.Generator().manual_seed(SEED)

    def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=chance).to(dtype)

    kinds = {"f": torch.float32, "b": torch.bfloat16, "h": torch.float16, "d": torch.float64}
    names = ("q_proj", "k_proj", "v_proj", "norm")
    return [
        save_bytes({"a": noise(3), "b": noise(2, 2, dtype=torch.float16)}),
        save_bytes({"x.weight": noise(4, 3)}, metadata={"format": "pt"}),
        save_bytes({name: noise(2, 3, dtype=dtype) for name, dtype in kinds.items()}, metadata={"format": "pt"}),
        save_bytes({f"model.layers.{i}.{name}.weight": noise(2) for i in range(10) for name in names}),
        save_bytes(
            {"mask": torch.ones(5, dtype=torch.bool), "ids": torch.arange(4), "empty": noise(0, 7), "s": noise()}
        ),
        save_bytes({"w": noise(3, dtype=torch.bfloat16)}, metadata={f"key{i}": "value" * i for i in range(9)}),
    ]


def _looked_at(path: Path, case: str, *, expected: str | None = None, tensors: bool = True) -> Found:
    """Read a file as the product does, and as the library does where ours reads it."""
    began, problem, ours, read = time.process_time(), "", {}, False
    try:
        entries = read_header(path)
        if tensors:
            with TensorReader() as reader:
                ours = {name: reader.read_whole(entry) for name, entry in entries.items()}
        read = True
    except CheckpointError as error:
        text = str(error)
        if "\n" in text or not text.isprintable() or len(text) > 1000 or str(path) not in text:
            problem = f"refused, but not in one line that names the file: {text[:200]!r}"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - began
    if expected is not None and read != (expected == "read") and not problem:
        problem = f"must be {expected}"
    if seconds > MOST_S and not problem:
        problem = f"took {seconds:.1f} s"
    found: Found = {"case": case, "read": read, "seconds": seconds, "fault": problem}
    return found | _compared(path, ours, problem) if read and tensors else found


def _compared(path: Path, ours: dict[str, torch.Tensor], problem: str) -> Found:
    try:
        theirs = load_bytes(path.read_bytes())
    except Exception as error:
        return {"fault": problem or f"read, but the library refuses it: {error}"}
    if ours.keys() != theirs.keys():
        return {"fault": problem or f"the library reads the tensors {sorted(theirs)[:4]}, ours {sorted(ours)[:4]}"}
    for name, tensor in ours.items():
        other = theirs[name]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape) or _bits(tensor) != _bits(other):
            return {"fault": problem or f"tensor {name!r} is not what the library reads"}
    return {}


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """Header text and data, by whatever the length says."""
    length = min(int.from_bytes(data[:8], "little"), max(0, len(data) - 8))
    return data[8 : 8 + length], data[8 + length :]


def _joined(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _flip_bit(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _swap_bytes(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    i, j = chance.randrange(len(out)), chance.randrange(len(out))
    out[i], out[j] = out[j], out[i]
    return bytes(out)


def _insert(data: bytes, chance: random.Random) -> bytes:
    header, rest = _parts(data)
    at = chance.randint(0, len(header))
    piece = chance.choice((b"\0", b" ", b'"', b"{", b"}", b",", b"\\", b"\xff", b"\xef\xbb\xbf", b"[[[[", b"9" * 5000))
    return _joined(header[:at] + piece + header[at:], rest)


def _delete(data: bytes, chance: random.Random) -> bytes:
    header, rest = _parts(data)
    at = chance.randint(0, len(header))
    return _joined(header[:at] + header[at + chance.randint(1, 9) :], rest)


def _cut_data(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randint(8, len(data))] if chance.random() < 0.5 else data + bytes(chance.randint(1, 9))


def _replace_number(data: bytes, chance: random.Random) -> bytes:
    header, rest = _parts(data)
    numbers = list(re.finditer(rb"(?<=[\[,])\d+(?=[\],])", header))
    if not numbers:
        return _flip_bit(data, chance)
    one = chance.choice(numbers)
    return _joined(header[: one.start()] + chance.choice(NUMBERS).encode() + header[one.end() :], rest)


def _replace_length(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    wanted = chance.choice((0, 1, length - 1, length + 1, 2 * length, len(data), 10**8, 10**8 + 1, 2**63, 2**64 - 1))
    return struct.pack("<Q", max(0, wanted) % 2**64) + data[8:]


def _repeat_key(data: bytes, chance: random.Random) -> bytes:
    entry = _random_entry(data, chance)
    if entry is None:
        return _flip_bit(data, chance)
    header, rest = _parts(data)
    name, fields = entry
    if chance.random() < 0.5:
        fields = json.dumps({**json.loads(fields), "shape": [chance.randint(0, 9)]})
    return _joined(header.rstrip(b" ")[:-1] + f",{name}:{fields}}}".encode(), rest)


def _swap_fields(data: bytes, chance: random.Random) -> bytes:
    """Give a tensor the shape turned round, or another dtype of the same width."""
    header, rest = _parts(data)
    changed = chance.choice(
        (
            lambda text: re.sub(rb"\[(\d),(\d)\]", rb"[\2,\1]", text, count=1),
            lambda text: text.replace(b'"F16"', b'"BF16"', 1),
            lambda text: text.replace(b'"F32"', b'"I32"', 1),
            lambda text: text.replace(b'"dtype"', b'"Dtype"', 1),
        )
    )(header)
    return _joined(changed, rest)


def _random_entry(data: bytes, chance: random.Random) -> tuple[str, str] | None:
    try:
        header = json.loads(_parts(data)[0])
    except (ValueError, RecursionError):
        return None
    entries = {name: one for name, one in header.items() if isinstance(one, dict)} if isinstance(header, dict) else {}
    if not entries:
        return None
    name = chance.choice(list(entries))
    return json.dumps(name), json.dumps(entries[name])


MUTATORS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bit, _swap_bytes, _insert, _delete, _cut_data, _replace_number, _replace_number, _replace_length,
    _repeat_key, _swap_fields,
)  # fmt: skip
