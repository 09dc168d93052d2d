import pytest
import torch

from bench import limits


@pytest.fixture(autouse=True)
def same_threads():
    """The benches set their own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_limit_is_a_rate_with_a_name(settings):
    found = {row.case: row for row in limits.measure(settings)}
    names = {"copy_gb_s", "read_gb_s", "file_read_gb_s", "file_mmap_gb_s", "file_write_gb_s", "file_sync_gb_s"}
    names |= {f"{what}_gflops_{dtype}_8" for what in ("matmul", "head") for dtype in ("float32", "bfloat16")}
    names |= {"matmul_gflops_float32", "matmul_gflops_bfloat16"}
    assert names <= found.keys()
    assert all(row.value > 0 for row in found.values())
    assert {row.unit for row in found.values()} == {"GB/s", "GFLOP/s"}
    both = max(found["file_pread_gb_s"].value, found["file_mmap_gb_s"].value)
    assert found["file_read_gb_s"].value == both
    assert not list(settings.scratch.iterdir()), "the file is removed"


def test_the_best_way_and_the_best_try_count(monkeypatch):
    clock, steps = [0.0], iter([3.0, 2.0, 5.0, 4.0])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: clock[0])

    def way():
        clock[0] += next(steps)

    assert limits.best_s([way, way], tries=2) == 2.0


def test_a_file_is_read_and_written_whole(tmp_path):
    path = tmp_path / "file"
    size = 3 * limits.BLOCK_BYTES + 17
    limits._write(path, size, 2, sync=True)
    assert path.stat().st_size == size
    parts = []
    limits._in_parts(10, 3, lambda at, length: parts.append((at, length)))
    assert sorted(parts) == [(0, 4), (4, 4), (8, 2)]
