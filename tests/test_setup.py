"""The set-up behind the make commands: when it installs, and what it says when something is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import script

ROOT = Path(__file__).resolve().parents[1]
FIND = ROOT / "scripts" / "python.sh"
setup = script("setup")

NO_NETWORK = """
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<x.HTTPSConnection object at 0x7f>: \
Failed to establish a new connection: [Errno -2] Name or service not known')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose environments and installations are pretended; `done` is what was asked for."""
    root = tmp_path / "a project"
    root.mkdir()
    (root / "requirements.txt").write_text("torch==1\n", encoding="ascii")
    (root / "requirements-dev.txt").write_text("-r requirements.txt\npytest==1\n", encoding="ascii")
    (root / "pyproject.toml").write_text("[build-system]\nrequires = []\n", encoding="ascii")
    done: list[str] = []

    def make_venv(venv: Path) -> None:
        done.append("venv")
        venv.mkdir(exist_ok=True)
        (venv / "version").write_text("3 12", encoding="ascii")

    def version_of(venv: Path) -> tuple[int, ...] | None:
        path = venv / "version"
        return tuple(map(int, path.read_text(encoding="ascii").split())) if path.exists() else None

    monkeypatch.setattr(setup, "make_venv", make_venv)
    monkeypatch.setattr(setup, "version_of", version_of)
    monkeypatch.setattr(setup, "install", lambda root, venv, requirements, lock: done.append(requirements))
    return root, done


def test_it_installs_once(project):
    root, done = project
    setup.set_up(root, "requirements.txt")
    setup.set_up(root, "requirements.txt")
    assert done == ["venv", "requirements.txt"]


def test_the_larger_set_holds_the_smaller(project):
    root, done = project
    setup.set_up(root, "requirements-dev.txt")
    setup.set_up(root, "requirements.txt")
    setup.set_up(root, "requirements-dev.txt")
    assert done == ["venv", "requirements-dev.txt"]


def test_the_peers_of_the_benches_have_an_environment_of_their_own(project):
    root, done = project
    (root / "requirements-bench.txt").write_text("torch==1\npeer==1\n", encoding="ascii")
    setup.set_up(root, "requirements.txt")
    setup.set_up(root, "requirements-bench.txt")
    setup.set_up(root, "requirements-bench.txt")
    assert done == ["venv", "requirements.txt", "venv", "requirements-bench.txt"]
    assert {path.name for path in root.glob(".venv*")} == {".venv", ".venv-bench"}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "pyproject.toml"])
def test_it_installs_again_what_changed(project, name):
    root, done = project
    setup.set_up(root, "requirements-dev.txt")
    done.clear()
    (root / name).write_text((root / name).read_text(encoding="ascii") + "# more\n", encoding="ascii")
    setup.set_up(root, "requirements-dev.txt")
    assert done == ["requirements-dev.txt"]


def test_a_change_of_the_checks_alone_leaves_the_demo_ready(project):
    root, done = project
    setup.set_up(root, "requirements-dev.txt")
    done.clear()
    (root / "requirements-dev.txt").write_text("-r requirements.txt\npytest==2\n", encoding="ascii")
    setup.set_up(root, "requirements.txt")
    assert done == []


def test_a_project_that_was_moved_is_installed_again(project):
    root, done = project
    setup.set_up(root, "requirements.txt")
    done.clear()
    setup.set_up(root.rename(root.parent / "elsewhere"), "requirements.txt")
    assert done == ["requirements.txt"]


def test_an_installation_that_ends_early_is_done_again(project, monkeypatch):
    root, done = project
    setup.set_up(root, "requirements.txt")
    (root / "requirements.txt").write_text("torch==2\n", encoding="ascii")

    def interrupted(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setup.set_up(root, "requirements.txt")
    (root / "requirements.txt").write_text("torch==1\n", encoding="ascii")
    done.clear()
    setup.set_up(root, "requirements.txt")
    assert done == ["requirements.txt"], "half of torch 2 may be there"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"requirements.txt": 3}'])
def test_a_damaged_stamp_is_no_stamp(project, text):
    root, done = project
    setup.set_up(root, "requirements.txt")
    done.clear()
    (root / ".venv" / setup.STAMP).write_text(text, encoding="ascii")
    setup.set_up(root, "requirements.txt")
    assert done == ["requirements.txt"]


def test_which_environments_can_stay():
    here = sys.version_info[:2]
    assert setup.fits(here, python_named=True)
    assert setup.fits((3, 11), python_named=False)
    assert setup.fits((3, 99), python_named=False)
    assert not setup.fits((3, 99), python_named=True), "the user named another Python"
    assert not setup.fits((3, 10), python_named=False)
    assert not setup.fits(None, python_named=False)


def test_the_version_of_an_environment(tmp_path):
    (tmp_path / "bin").mkdir()
    assert setup.version_of(tmp_path) is None
    (tmp_path / "bin" / "python").symlink_to("/nowhere/python")
    assert setup.version_of(tmp_path) is None
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert setup.version_of(tmp_path) == sys.version_info[:2]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_environment_is_left_alone(tmp_path, make):
    venv = tmp_path / ".venv"
    make(venv)
    with pytest.raises(setup.SetupError, match=r"is not a virtual environment: move it away"):
        setup.make_venv(venv)
    assert venv.exists()


def test_a_command_is_logged_and_its_reason_told(tmp_path):
    code = "import sys; print('a wall of text'); print('ERROR: no such wheel', file=sys.stderr); sys.exit(1)"
    with pytest.raises(setup.SetupError, match=r"^could not bake: no such wheel \(all of it: .*pip\.log\)$"):
        setup.run_logged([sys.executable, "-c", code], tmp_path, doing="bake")
    assert "a wall of text" in (tmp_path / setup.LOG).read_text(encoding="utf-8")


def test_what_would_lead_pip_astray_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_PROXY", "kept")
    assert "PIP_USER" not in setup.environment()
    assert setup.environment()["PIP_PROXY"] == "kept"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NO_NETWORK, "no network ([Errno -2] Name or service not known): connect, then run the same command again"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        (
            "WARNING: Retrying after connection broken by 'X': /y\nERROR: ResolutionImpossible: a wants b",
            "ResolutionImpossible: a wants b (all of it: ",
        ),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "No matching distribution found for torch==2.13.0 (",
        ),
        ("some words\nlast words\n\n", "last words (all of it: "),
        ("", "it printed nothing (all of it: "),
    ],
)
def test_reasons_are_one_line(tmp_path, text, reason):
    found = setup.reason_of(text, tmp_path, doing="install it")
    assert found.startswith("could not install it: ")
    assert reason in found
    assert "\n" not in found


def fake(folder: Path, name: str, *, version: str, new_enough: bool, has_venv: bool) -> Path:
    """A program that answers what python.sh asks, and prints its name and arguments when it is run."""
    path = folder / name
    path.write_text(
        f"""#!/bin/sh
case "$*" in
    *ensurepip*) exit {int(not has_venv)};;
    *sys.exit*) exit {int(not new_enough)};;
    *print*) echo {version};;
    *) echo ran {name} "$@";;
esac
""",
        encoding="ascii",
    )
    path.chmod(0o755)
    return path


def find(folder: Path, *, python: str | Path = "") -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(folder), "PYTHON": str(python)}
    return subprocess.run(["/bin/sh", FIND, "x.py", "a b"], env=env, capture_output=True, text=True, check=False)


def test_the_newest_python_is_found(tmp_path):
    fake(tmp_path, "python3", version="3.9", new_enough=False, has_venv=True)
    fake(tmp_path, "python3.11", version="3.11", new_enough=True, has_venv=True)
    assert find(tmp_path).stdout == "ran python3.11 x.py a b\n"
    fake(tmp_path, "python3.13", version="3.13", new_enough=True, has_venv=False)
    assert find(tmp_path).stdout == "ran python3.11 x.py a b\n", "3.13 cannot make environments"


def test_a_named_python_is_taken_or_refused(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    good = fake(folder, "good", version="3.12", new_enough=True, has_venv=True)
    old = fake(folder, "old", version="3.9", new_enough=False, has_venv=True)
    bare = fake(folder, "bare", version="3.12", new_enough=True, has_venv=False)
    assert find(tmp_path, python=good).stdout == "ran good x.py a b\n"
    for python, message in [
        (old, f"PYTHON={old} is Python 3.9: 3.11 or newer is needed\n"),
        (bare, "(Debian and Ubuntu: apt install python3.12-venv)\n"),
        (tmp_path / "none", f"PYTHON={tmp_path / 'none'} does not exist: give the path of a Python 3.11 or newer\n"),
    ]:
        done = find(tmp_path, python=python)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.endswith(message)
        assert done.stderr.count("\n") == 1


def test_no_python_is_one_line(tmp_path):
    assert find(tmp_path).stderr == (
        "no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python\n"
    )
    fake(tmp_path, "python3", version="3.9", new_enough=False, has_venv=True)
    assert "found (python3 is 3.9): install" in find(tmp_path).stderr
    fake(tmp_path, "python3.12", version="3.12", new_enough=True, has_venv=False)
    assert find(tmp_path).stderr.startswith("python3.12 cannot make virtual environments")
    assert find(tmp_path).returncode == 1


def test_scripts_are_executable_where_they_must_be():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
