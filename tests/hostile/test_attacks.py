"""The quick part of every attack: nothing may fail, and something must have been tried."""

import importlib

import pytest

from hostile.__main__ import ATTACKS
from hostile.document import ROOT


@pytest.mark.parametrize("name", ATTACKS)
def test_everything_survives(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "workspace"))
    place = tmp_path / "place"
    place.mkdir()
    outcomes = list(importlib.import_module(f"hostile.{name}").attack(place, quick=True))
    assert outcomes
    assert not [(one.case, one.survived, one.tried, one.failures) for one in outcomes if one.failed]


def test_every_attack_is_explained():
    page = (ROOT / "hostile" / "README.md").read_text(encoding="ascii")
    assert [name for name in ATTACKS if f"`{name}`" not in page] == []
