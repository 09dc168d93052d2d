"""Attack: command lines put together by chance from what the parser knows, with values that nobody should give."""

import argparse
import contextlib
import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from hostile.input_child import Found, watched
from hostile.outcomes import Outcome, Tally
from tests.tiny import make_adapter, make_model, make_policies

__all__ = ["attack", "cases"]

SEED = 20261124
LINES, QUICK_LINES = 3000, 150
ANSWER_S = 90.0
LONGEST_LINE = 20_000  # it may say what was given
# These wait for a person, or take hours where what they are given is sound.
LEFT_OUT = ("app", "serve", "demo", "study")
# What sound values of these would make: a long computation.
ALWAYS = {"--num-prompts": "2", "--samples": "1", "--max-new-tokens": "3", "--n": "1", "--reward": "length"}
NASTY = (
    *("", " ", "-", "--", "-1", "0", "1e999", "nan", "-inf", "9" * 400, "0x10", "1_000", "\u0661", "null", "[]", "{}"),
    *("a\nb", "a\x1b[31mb", "\x07", "\u202egpj", "caf\u00e9", "\ud800", "x" * 5000, "%s%n", "{0.__class__}", "$(id)"),
    *("../../etc/passwd", "/", "/dev/null", "/dev/zero", "/proc/self/mem", ".", "..", "~", "~nobody/x", "C:\\x", "a/b"),
    *("owner/name", "https://192.0.2.1/x", "python:os.abort", "python:", "python:.", "smollm2-135m:", "init:nan"),
)
# What has failed before.
KNOWN = (
    ("geometry", "--init", "init", "--policies", "policy0", "--json", "--a\x1b[31mb"),
    ("merge", "--init", "init", "--policies", "policy0", "--out", "large", "--max-shard-size", "9" * 400 + "GB"),
)
SOUND = ("init", "policy0", "policy1", "adapter0", "gpt2", "prompts.txt", "run.toml", "0.5", "2", "length", "slerp")


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Run the lines in one process after the other."""
    tally = Tally(
        "command lines by chance",
        promise="",
        holds="done, or exit code 2 with one line on stderr and nothing on stdout; never a trace, never a file outside",
    )
    codes: dict[str, int] = {}
    slowest = 0.0
    given = {"place": str(place), "number": QUICK_LINES if quick else LINES}
    for found in watched("hostile.misuse:cases", given, answer_s=ANSWER_S):
        tally.check(not found.get("fault", found.get("problem")), f"{found.get('case', '')}: {found}")
        codes[str(found.get("code"))] = codes.get(str(found.get("code")), 0) + 1
        slowest = max(slowest, found.get("seconds", 0.0))
    counted = ", ".join(f"code {code}: {count}" for code, count in sorted(codes.items()))
    tally.check(codes.get("2", 0) > tally.tried / 2, f"hardly any was refused: {counted}")
    yield tally.outcome(f"{counted}; slowest {slowest:.1f} s")


def cases(place: str, number: int) -> Iterator[Found]:
    """Run command lines in this process."""
    here = Path(place) / "here"
    init = make_model("llama", here / "init")
    make_policies(init, here, num=2)
    make_adapter(init, here / "adapter0")
    make_model("gpt2", here / "gpt2")
    (here / "prompts.txt").write_text("it is\nthe plot\n", encoding="utf-8")
    (here / "run.toml").write_text("[training]\nsteps = 0\n", encoding="utf-8")
    os.chdir(here)
    from transformers.utils.logging import disable_progress_bar

    from warp_core.cli import build_parser

    disable_progress_bar()  # the commands see to that before they import transformers, which was done above
    commands = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)).choices
    draw, names = random.Random(SEED), sorted(set(commands) - set(LEFT_OUT))
    outside, inside = sorted(path.name for path in Path(place).iterdir()), _here()
    for index in range(-len(KNOWN), number):
        argv = list(KNOWN[index]) if index < 0 else _line(draw, draw.choice(names), commands)
        yield _tried(f"line {index}: {argv}"[:300], argv) | {"index": index}
        now = sorted(path.name for path in Path(place).iterdir() if path.name not in ("cache", "workspace"))
        if now != [name for name in outside if name not in ("cache", "workspace")]:
            yield {"case": f"line {index}: {argv}", "fault": f"made {set(now) - set(outside)} outside its folder"}
            outside = now
        made = [name for name in sorted(_here() - inside) if not any(name in one for one in argv)]
        if made:
            yield {"case": f"line {index}: {argv}", "fault": f"made {made}, which nobody has named"}
        inside |= _here()


def _here() -> set[str]:
    return {one.name for one in Path().iterdir()}


def _line(draw: random.Random, name: str, commands: dict[str, argparse.ArgumentParser]) -> list[str]:
    """Options of a command, some of them wrong; now and then an option of another command, or none that is needed."""
    argv = [name]
    own = [one for one in commands[name]._actions if one.dest != "help"]
    others = [one for other in commands.values() for one in other._actions if one.dest != "help"]
    for action in own:
        needed = action.required or not action.option_strings
        if not needed and draw.random() > 0.3 and not set(action.option_strings) & set(ALWAYS):
            continue
        if needed and draw.random() < 0.05:
            continue
        argv += _given(draw, action)
    if draw.random() < 0.1:
        argv += _given(draw, draw.choice(others))
    if draw.random() < 0.1:
        argv.insert(draw.randrange(len(argv) + 1), draw.choice(NASTY))
    return argv


def _given(draw: random.Random, action: argparse.Action) -> list[str]:
    words = list(action.option_strings[-1:])
    if action.nargs == 0:
        return words
    count = draw.choice((1, 2)) if action.nargs in ("+", "*") else 1
    for _ in range(count):
        if words and words[0] in ALWAYS and draw.random() < 0.7:
            words.append(ALWAYS[words[0]])
        elif action.choices and draw.random() < 0.7:
            words.append(str(draw.choice(list(action.choices))))
        else:
            words.append(draw.choice(SOUND if draw.random() < 0.5 else NASTY))
    return words


def _tried(case: str, argv: list[str]) -> Found:
    from warp_core.cli import main

    out, err, began = io.StringIO(), io.StringIO(), time.process_time()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: object = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    except BaseException as error:
        return {"case": case, "code": None, "fault": f"{type(error).__name__}: {error}"[:300]}
    lines = [line for line in err.getvalue().splitlines() if line.startswith("warp-core")]
    fault = ""
    if "Traceback" in err.getvalue():
        fault = f"a trace: {err.getvalue()[-300:]}"
    elif code not in (0, 2):
        fault = f"code {code}: {err.getvalue()[-300:]}"
    elif argv[0] == "check" and code == 2 and out.getvalue() and not err.getvalue():
        fault = ""  # what it found is its answer
    elif code == 2 and (out.getvalue() or len(lines) != 1 or not err.getvalue().endswith(lines[0] + "\n")):
        fault = f"not one line at the end: {err.getvalue()[-300:]!r}, stdout {out.getvalue()[:100]!r}"
    elif code == 2 and (len(lines[0]) > LONGEST_LINE or any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in lines[0])):
        fault = f"a line of {len(lines[0])} characters, or with control characters: {lines[0][:200]!r}"
    return {"case": case, "code": code, "fault": fault, "seconds": time.process_time() - began}
