"""The strict header reader, attacked."""

import json
import os
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from warp_core.errors import CheckpointError
from warp_core.weights.headers import read_header
from warp_core.weights.tensor_io import ShardWriter, TensorReader, row_chunks

ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def write(path, header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_it_reads_what_safetensors_writes(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(5, dtype=torch.bfloat16), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "x.safetensors")
    with TensorReader() as reader:
        for name, tensor in tensors.items():
            assert torch.equal(reader.read_whole(entries[name]), tensor)
        assert reader.read(entries["b"], start=2, stop=5).tolist() == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (f'{{"a":{ENTRY},"a":{ENTRY}}}', "duplicate key 'a'"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', "-0 for a number"),
        ('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "duplicate key 'dtype'"),
        ("{", "malformed"),
        ("[" * 100_000, "malformed"),
        (b"\xff\xfe", "malformed"),
        ("[]", "not a JSON object"),
        ('{"__metadata__":3}', "__metadata__"),
        ('{"a":3}', "lacks"),
        ('{"a":{"dtype":"F32","shape":[2]}}', "lacks"),
        ('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "does not fit"),
        ('{"a":{"dtype":"F32","shape":[-2,-1],"data_offsets":[0,8]}}', "no valid shape"),
        ('{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', "no valid shape"),
        ('{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}', "no valid shape"),
        ('{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}}', "no valid shape"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "data_offsets"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', "begins at byte 8"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":' + ENTRY + "}", "begins at byte 0"),
        ('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "truncated"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "longer"),
        ('{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}', "quantised"),
        ('{"a":{"dtype":"Q4","shape":[8],"data_offsets":[0,8]}}', "unknown dtype"),
        ('{"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}', "unknown dtype"),
        (f'{{"a\\u0000b":{ENTRY}}}', "not printable"),
        (f'{{"":{ENTRY}}}', "empty"),
        (f'{{"{"x" * 600}":{ENTRY}}}', "longer than"),
    ],
)
def test_malformed_headers(header, message, tmp_path):
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as err:
        read_header(path)
    assert str(path) in str(err.value)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 50) + b"{}"])
def test_truncated_files(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="regular file"):
        read_header(tmp_path / "x.safetensors")


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "x.safetensors")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    save_file({"a": torch.ones(100)}, tmp_path / "x.safetensors")
    entry = read_header(tmp_path / "x.safetensors")["a"]
    os.truncate(tmp_path / "x.safetensors", 200)
    with TensorReader() as reader, pytest.raises(CheckpointError, match="truncated while"):
        reader.read(entry)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_file_is_read_or_refused(tmp_path, data):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.float16)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        entries = read_header(path)
    except CheckpointError:
        return
    with TensorReader() as reader:
        for entry in entries.values():
            reader.read_whole(entry)


def test_the_writer_is_read_by_safetensors(tmp_path):
    tensors = {"odd": torch.ones(3, dtype=torch.bfloat16), "wide": torch.arange(4.0, dtype=torch.float64)}
    specs = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with ShardWriter(tmp_path / "x.safetensors", specs) as writer:
        assert writer.names == ["wide", "odd"]
        for name in writer.names:
            writer.write(name, tensors[name][2:], start=2)
            writer.write(name, tensors[name][:2])
    again = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    text = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((4, 5), [(0, 10), (10, 20)]),
        ((4, 50), [(0, 50), (50, 100), (100, 150), (150, 200)]),
        ((25,), [(0, 12), (12, 24), (24, 25)]),
        ((2, 2, 4), [(0, 12), (12, 16)]),
        ((), [(0, 1)]),
        ((0, 3), []),
    ],
)
def test_row_chunks(shape, chunks):
    assert list(row_chunks(shape, numel=12)) == chunks
