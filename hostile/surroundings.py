"""Attack: commands under odd clocks, locales, umasks, names, streams and folders: they work, or say one line."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile.document import ROOT
from hostile.outcomes import Outcome, Tally
from hostile.running_programs import QUIET
from tests.tiny import make_model, make_policies
from tests.training.runs import tiny_config
from warp_core.training.config import config_to_toml
from warp_core.workspace.hashing import sha256_file

LIMIT_S = 170.0
AT_ONCE = 2
ODD_NAME = "a b \u00e9\u0416\u6f22 'q' $x & ;"
COMMANDS = ("merge", "train", "front", "doctor")
CLOCK = """
import time
def _back(real, unit):
    began = real()
    return lambda: began - {seconds} * unit + {pace} * (real() - began)
time.time, time.time_ns = _back(time.time, 1), _back(time.time_ns, 10**9)
"""


@dataclass(frozen=True)
class Surrounding:
    """What a command finds itself in.

    Attributes:
        shell: what comes before it in a shell.
        streams: redirections after it.
        environment: variables that are set; None removes one.
        name: of the folder that holds models and outputs.
        clock_s: the clock of the process is so many seconds behind.
        pace: so fast it goes; below 0 it goes backwards.
        ahead_s: files were changed so many seconds in the future.
    """

    name: str
    shell: str = ""
    streams: str = ""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    folder: str = "place"
    clock_s: int = 0
    pace: int = 1
    ahead_s: int = 0


SURROUNDINGS = (
    Surrounding("a clock ten years behind", clock_s=315_360_000),
    Surrounding("a clock before 1970", clock_s=10_000_000_000),
    Surrounding("a clock that is set back all the time", clock_s=1, pace=-1000),
    Surrounding("files of tomorrow", ahead_s=86_400),
    Surrounding("LC_ALL=C", environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Surrounding("a locale that is not installed", environment={"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY.UTF-8"}),
    Surrounding("no LANG", environment={"LANG": None, "LC_ALL": None, "PYTHONUTF8": "0"}),
    Surrounding("odd characters in paths", folder=ODD_NAME),
    Surrounding(
        "odd characters in paths, LC_ALL=C",
        folder=ODD_NAME,
        environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    Surrounding("a very long name", folder="n" * 240),
    Surrounding("umask 077", shell="umask 077;"),
    Surrounding("umask 000", shell="umask 000;"),
    Surrounding("no HOME", environment={"HOME": None, "XDG_CACHE_HOME": None}),
    Surrounding("a HOME that is not there", environment={"HOME": "/nonexistent/home"}),
    Surrounding("no TERM", environment={"TERM": None, "COLUMNS": None}),
    Surrounding("stdin closed", streams="<&-"),
    Surrounding("stdout closed", streams=">&-"),
    Surrounding("stderr closed", streams="2>&-"),
    Surrounding("all streams closed", streams="<&- >&- 2>&-"),
    Surrounding("a working folder that was deleted", shell='mkdir "$GONE" && cd "$GONE" && rmdir "$GONE" &&'),
)
ALL_AT_ONCE = (
    Surrounding(
        "all of it",
        shell="umask 077;",
        streams="<&-",
        environment={
            **dict.fromkeys(("HOME", "TERM", "LANG"), None),
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
        folder=ODD_NAME,
        clock_s=315_360_000,
        ahead_s=86_400,
    ),
)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Run the commands in each surrounding."""
    inputs = _inputs(place / "inputs")
    chosen = ALL_AT_ONCE if quick else (*SURROUNDINGS, *ALL_AT_ONCE)
    commands = ("merge",) if quick else COMMANDS
    tallies = {
        name: Tally(
            f"`{name}` in odd surroundings",
            promise="P1" if name == "merge" else "",
            holds="done, with the numbers of an undisturbed run and mode 0644, or one line and exit code 2; no trace",
        )
        for name in commands
    }
    usual = {name: _usual(place, inputs, name) for name in commands}
    jobs = [(number, one, name, usual[name]) for number, one in enumerate(chosen) for name in commands]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tried = pool.map(lambda job: _tried(place, inputs, *job), jobs)
        for (_, one, name, _), problems in zip(jobs, tried, strict=True):
            tallies[name].check(not problems, f"{one.name}: {'; '.join(problems)}")
    for tally in tallies.values():
        yield tally.outcome()


def _inputs(folder: Path) -> Path:
    init = make_model("llama", folder / "init")
    make_policies(init, folder, num=2)
    return folder


def _usual(place: Path, inputs: Path, name: str) -> Any:
    """What a command makes where nothing is odd."""
    base = place / f"usual-{name}"
    home = base / "place"
    shutil.copytree(inputs, home)
    ended = _run(base, Surrounding("as usual"), _argv(home, name))
    if isinstance(ended, str) or ended[0]:
        raise RuntimeError(f"{name} where nothing is odd: {ended}")
    return _made(home, name, ended[1])


def _made(home: Path, name: str, out: str) -> Any:
    """The numbers that a command makes: hashes of weights, or points."""
    if name in ("merge", "train"):
        folder = home / "out"
        return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*.safetensors"))}
    if name == "front" and out:
        return [(point["kl"], point["reward"]) for point in json.loads(out)["points"]]
    return None


def _tried(place: Path, inputs: Path, number: int, one: Surrounding, name: str, usual: Any) -> list[str]:
    """Run a command in a surrounding; what is wrong with how it ended."""
    base = place / f"{number}-{name}"
    home = base / one.folder
    shutil.copytree(inputs, home)
    argv = _argv(home, name)
    if one.ahead_s:
        for file in home.rglob("*"):
            os.utime(file, (time.time() + one.ahead_s,) * 2)
    ended = _run(base, one, argv)
    if isinstance(ended, str):
        return [ended]
    code, out, err = ended
    problems = [f"a trace: {err[-300:]}"] if "Traceback" in err else []
    if code not in (0, 2):
        problems.append(f"code {code}: {err[-300:]}")
    silent = "2>&-" in one.streams
    if code == 2 and not silent and len([line for line in err.splitlines() if line.startswith("warp-core: ")]) != 1:
        problems.append(f"not one line: {err[-300:]}")
    if code == 2 and not _may_refuse(one):
        problems.append(f"refused: {err[-300:]}")
    if code == 0 and name in ("merge", "train"):
        problems += _output_problems(home, name)
    if code == 0 and ">&-" not in one.streams.replace("2>&-", "") and not _is_json(out):
        problems.append(f"stdout is no JSON document: {out[:100]!r}")
    elif code == 0 and (out or name != "front") and (made := _made(home, name, out)) != usual:
        problems.append(f"made {made}, not {usual}")
    if not problems:
        shutil.rmtree(base)
    return problems


def _may_refuse(one: Surrounding) -> bool:
    """Whether a command may say that it cannot work there."""
    return one.name in ("a clock before 1970", "a HOME that is not there", "a working folder that was deleted")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _argv(home: Path, name: str) -> list[str]:
    models = ["--init", str(home / "init"), "--policies", *(str(path) for path in sorted(home.glob("policy*")))]
    prompts = home / "prompts.txt"
    prompts.write_text("it is\nthe plot\n", encoding="utf-8")
    match name:
        case "merge":
            return ["merge", *models, "--out", str(home / "out"), "--json"]
        case "train":
            training: dict[str, Any] = {"reward": {"terms": ["length"]}, "training": {"steps": 2}}
            config = tiny_config(home, home / "init", **training)
            (home / "run.toml").write_text(config_to_toml(config), encoding="utf-8")
            return ["train", str(home / "run.toml"), "--out", str(home / "out"), "--json"]
        case "front":
            options = ["--reward", "length", "--prompts", str(prompts), "--num-prompts", "2", "--max-new-tokens", "4"]
            return ["front", *models, "--etas", "0.5", *options, "--json"]
    return ["doctor", "--json"]


def _run(base: Path, one: Surrounding, argv: Sequence[str]) -> tuple[int, str, str] | str:
    """Run a command in a shell; exit code, stdout and stderr, or what is wrong."""
    environment = os.environ | QUIET | {"WARP_CACHE": str(base / "cache"), "GONE": str(base / "gone")}
    environment |= {"WARP_WORKSPACE": str(base / one.folder / "runs"), "PYTHONPATH": str(ROOT)}
    for name, value in one.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    program = [sys.executable, "-m", "warp_core"]
    if one.clock_s:
        script = (
            CLOCK.format(seconds=one.clock_s, pace=one.pace)
            + "import sys\nfrom warp_core.cli import main\nsys.exit(main())\n"
        )
        program = [sys.executable, "-c", script]
    line = f"{one.shell} exec {shlex.join([*program, *argv])} {one.streams}"
    child = subprocess.Popen(
        ["sh", "-c", line],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = child.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S:.0f} s"
    finally:
        child.kill()
        child.wait()
    return child.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _output_problems(home: Path, name: str) -> list[str]:
    """What is wrong with an output: not there, or files that others cannot read as they should."""
    out = home / "out" if name == "merge" else home / "out" / "iteration-1" / "policy-1" / "checkpoint"
    files = [file for file in out.rglob("*") if file.is_file()] if out.is_dir() else []
    if not any(file.suffix == ".safetensors" for file in files):
        return ["says that it is done, and there is no output"]
    odd = {file.name: oct(mode) for file in files if (mode := stat.S_IMODE(file.stat().st_mode)) != 0o644}
    return [f"modes {odd}"] if odd else []
