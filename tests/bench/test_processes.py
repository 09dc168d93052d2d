import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.processes import ProcessError, private_bytes, run_measured, run_peer


def test_what_a_process_prints_and_how_long_it_takes():
    done = run_measured([sys.executable, "-c", "print('x'); print('{\"a\": 1}')"])
    assert done.answer() == {"a": 1}
    assert 0 < done.wall_s < 60


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_private_memory_is_what_it_fills_not_what_it_maps(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(64 << 20))
    code = """
import mmap, os, sys, time
mapped = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
filled = bytearray(32 << 20)
sum(mapped[::4096])
time.sleep(0.5)
"""
    done = run_measured([sys.executable, "-c", code, file])
    assert 33 < done.private_mb < 60
    assert private_bytes(os.getpid()) > 1e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_memory_of_children_counts():
    child = "import time; filled = bytearray(32 << 20); time.sleep(1.0)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run_measured([sys.executable, "-c", code]).private_mb > 33


def test_a_failure_says_why():
    with pytest.raises(ProcessError, match=r"code 3: the reason"):
        run_measured([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"])


def test_what_takes_too_long_is_ended():
    with pytest.raises(ProcessError, match="longer than 0 s"):
        run_measured([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.3)


def test_no_peer_is_said(settings):
    with pytest.raises(ProcessError, match="left out"):
        run_peer(settings, "merge")


def test_a_peer_runs_by_its_own_python(settings):
    with pytest.raises(ProcessError, match="no_such_peer"):
        run_peer(replace(settings, peer_python=Path(sys.executable)), "no_such_peer")
