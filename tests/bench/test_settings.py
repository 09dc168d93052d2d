from dataclasses import replace
from pathlib import Path

from bench.settings import read_settings, settings_json


def test_settings_reach_another_process_as_they_are(settings):
    full = replace(settings, peer_python=Path("/peers/python"), limits={"copy_gb_s": 20.5})
    assert read_settings(settings_json(full)) == full
    assert read_settings(settings_json(settings)).peer_python is None


def test_both_sides_get_the_same_threads_and_no_network(settings, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinite")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    ours, theirs = replace(settings, threads=3).environment(), replace(settings, threads=3).environment(peer=True)
    for environment in (ours, theirs):
        assert (environment["OMP_NUM_THREADS"], environment["HF_HUB_OFFLINE"]) == ("3", "1")
    assert (ours["OMP_WAIT_POLICY"], ours["GOMP_SPINCOUNT"]) == ("PASSIVE", "4000")
    assert not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & theirs.keys()
