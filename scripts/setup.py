"""Make .venv and install what the project needs: the first half of `make demo`, `make test` and `make check`.

    sh scripts/python.sh scripts/setup.py [requirements.txt | requirements-dev.txt | requirements-bench.txt]

The last one, what `make bench` compares with, has an environment of its own, .venv-bench, without this project.
Standard library only, on Python >= 3.11. It installs once and then takes a few hundredths of a second: a stamp in .venv
holds the hash of the requirements, and is written when everything else is done. What goes wrong is said in one line.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOWEST = (3, 11)
PEERS = "requirements-bench.txt"
STAMP = "warp-setup.json"
LOG = "pip.log"
AGAIN = "then run the same command again"
# What of the user's environment would send an installation elsewhere, or another library in front of ours.
DISTURBING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PYTHONHOME", "PYTHONPATH")
UNREACHABLE = re.compile(
    r"connection broken by|Max retries exceeded|NewConnectionError|Read timed out|Temporary failure in name resolution"
)


class SetupError(Exception):
    """What is missing on this machine and what to do, in one line."""


def main(arguments: Sequence[str]) -> int:
    """Set up for the requirements file that is named; 0 done, 1 a problem (one line on stderr), 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        set_up(ROOT, arguments[0] if arguments else "requirements.txt", python_named=bool(os.environ.get("PYTHON")))
    except SetupError as problem:
        print(problem, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"set-up: {error.filename or ROOT}: {error.strerror}: mend that, {AGAIN}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"set-up interrupted: {AGAIN[5:]} to go on", file=sys.stderr)
        return 130
    return 0


def set_up(root: Path, requirements: str, *, python_named: bool = False) -> None:
    """Bring root/.venv up to date with a requirements file, and install the project itself editable; or .venv-bench,
    with the peers alone.

    root: the project. requirements: a file in it. python_named: the user asked for the Python that runs this, so that
    an environment of another version is made anew. Raises SetupError, and OSError for what the disk refuses.
    """
    venv = root / (".venv-bench" if requirements == PEERS else ".venv")
    with only_one(root) as lock:
        version = version_of(venv)
        if not fits(version, python_named=python_named):
            make_venv(venv)
            version = version_of(venv)
        wanted = {name: fingerprint(root, name, version) for name in files_of(root, requirements)}
        done = read_stamp(venv)
        if wanted.items() <= done.items():
            return
        kept = {name: mark for name, mark in done.items() if mark == fingerprint(root, name, version)}
        (venv / STAMP).unlink(missing_ok=True)
        install(root, venv, requirements, lock=lock)
        temporary = venv / f"{STAMP}.tmp"
        temporary.write_text(json.dumps(kept | wanted), encoding="ascii")
        temporary.replace(venv / STAMP)


def files_of(root: Path, requirements: str) -> list[str]:
    """The requirements file and those that it includes with -r."""
    text = (root / requirements).read_text(encoding="utf-8")
    return [requirements, *(name for line in re.findall(r"^-r +(\S+)", text, re.M) for name in files_of(root, line))]


def fingerprint(root: Path, requirements: str, version: tuple[int, int] | None) -> str:
    """A hash of everything that an installation depends on: requirements, project settings, place and Python."""
    parts = [str(root), str(version)]
    parts += [(root / name).read_text(encoding="utf-8") for name in (*files_of(root, requirements), "pyproject.toml")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_stamp(venv: Path) -> dict[str, str]:
    """What was installed completely: requirements file -> fingerprint; empty where nothing or a damaged stamp is."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def python_in(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / "bin" / "python"


def version_of(venv: Path) -> tuple[int, int] | None:
    """The Python version of an environment; None where there is none that starts."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        out = subprocess.run([python_in(venv), "-c", code], capture_output=True, env=environment(), check=True).stdout
        major, minor = (int(part) for part in out.split())
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return major, minor


def fits(version: tuple[int, int] | None, *, python_named: bool) -> bool:
    """Whether an environment can stay: new enough, and of the version that the user named, if one was named."""
    return version is not None and version >= LOWEST and (not python_named or version == sys.version_info[:2])


def make_venv(venv: Path) -> None:
    """Make the environment with the Python that runs this, in place of one that does not fit.

    Raises SetupError if something that is no environment has the name, or the environment cannot be made.
    """
    if os.path.lexists(venv):
        ours = venv.is_dir() and not venv.is_symlink()
        if not ours or not ((venv / "pyvenv.cfg").exists() or (venv / LOG).exists()):
            raise SetupError(f"{venv} is not a virtual environment: move it away, {AGAIN}")
        say(
            f"making {venv.name} anew with Python {sys.version_info[0]}.{sys.version_info[1]}: the old one does not fit"
        )
        shutil.rmtree(venv)
    venv.mkdir()
    (venv / LOG).touch()  # tells an environment that was never finished from a folder of the user's
    run_logged([sys.executable, "-m", "venv", str(venv)], venv, doing=f"make a virtual environment at {venv}")


def install(root: Path, venv: Path, requirements: str, *, lock: int) -> None:
    """Install the requirements with pip, then the project itself, editable."""
    say(f"installing {requirements} into {venv.name} (once, about 2 minutes, longer on a slow network)")
    python = str(python_in(venv))
    (venv / LOG).write_bytes(b"")
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, env=environment()).returncode:
        run_logged([python, "-m", "ensurepip"], venv, doing=f"put pip into {venv.name}", lock=lock)
    with (root / "pyproject.toml").open("rb") as file:
        build: list[str] = tomllib.load(file)["build-system"]["requires"]
    pip = [python, "-m", "pip", "install", "--no-input", "--no-color", "--progress-bar", "off"]
    pip += ["--disable-pip-version-check"]
    run_logged([*pip, "-r", str(root / requirements), *build], venv, doing=f"install {requirements}", lock=lock)
    if requirements == PEERS:
        return
    # The build requirements are there already, so that this step needs no network.
    own = [*pip, "--no-deps", "--no-build-isolation", "--editable", str(root)]
    run_logged(own, venv, doing="install this project", lock=lock)


def run_logged(command: list[str], venv: Path, *, doing: str, lock: int | None = None) -> None:
    """Run a command with its output in the log, and say every minute that it still runs.

    The command inherits the lock: should this process be killed, the next set-up waits for what it left running.
    Raises SetupError with the reason that the log gives.
    """
    started = told = time.monotonic()
    with (venv / LOG).open("ab") as log:
        begin = log.tell()
        fds = () if lock is None else (lock,)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), pass_fds=fds
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    say(f"still at it after {(told - started) / 60:.0f} min")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        text = (venv / LOG).read_bytes()[begin:].decode("utf-8", errors="replace")
        raise SetupError(reason_of(text, venv, doing=doing))


def reason_of(text: str, venv: Path, *, doing: str) -> str:
    """One line on why a command failed, from what it printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["it printed nothing"])[-1].removeprefix("ERROR: ")[:300]
    free = shutil.disk_usage(venv).free
    # A full disk also swallows what would say so.
    if free < 10e6 or "No space left on device" in text or "Disk quota exceeded" in text:
        return f"could not {doing}: the disk is full ({free / 1e9:.1f} GB free at {venv.parent}): make room, {AGAIN}"
    # pip tells of a missing network as of a package that nobody has.
    if UNREACHABLE.search(last) or (UNREACHABLE.search(text) and "No matching distribution" in last):
        broken = re.findall(r"broken by '(.*?)':? /", text)
        cause = re.sub(r".*?(\[Errno[^\]]*\] [\w ]+).*", r"\1", broken[-1]) if broken else last
        return f"could not {doing}: no network ({cause[:200]}): connect, {AGAIN}"
    return f"could not {doing}: {last} (all of it: {venv / LOG})"


def environment() -> dict[str, str]:
    """The user's environment without what would lead an installation astray."""
    return {name: value for name, value in os.environ.items() if name not in DISTURBING}


@contextmanager
def only_one(root: Path) -> Iterator[int]:
    """Hold the project folder's lock, so that two commands started together do not install into each other."""
    lock = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this folder to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def say(message: str) -> None:
    """Tell the user what takes time."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
