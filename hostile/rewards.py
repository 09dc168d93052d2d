"""Rewards that misbehave, at the first step of a run and at a later one.

Each case is a body of a reward function in BAD, RUDE or FATAL. A run is trained with it, stops or ends, is mended and
resumed, and must end with the very bytes of a run that never met it. Cases are switched on by a file, so that the
reward keeps its identity (the hash of its source) over the mend.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from hostile.document import ROOT
from hostile.outcomes import Outcome, Tally
from tests.tiny import make_model
from tests.training.runs import CPU, in_a_process, metrics, tiny_config, trained_bytes
from warp_core.errors import DivergedError, RewardError, WarpError
from warp_core.rewards import load_reward
from warp_core.training.config import WarpConfig, config_to_toml
from warp_core.training.warp import train_warp

__all__ = ["attack"]

STEPS = 3
LATER = 3  # the call, counted from 1, that goes wrong where it is not the first
TIMEOUT_S = 0.5
PROCESS_S = 120.0
MODULE = "hostile_reward_cases"

# What a bad reward does with `p`, `c` (the lists) and `s` (the right scores); each must stop the run.
BAD: dict[str, str] = {
    "raises": "raise RuntimeError('the server\\nis down')",
    "raises without words": "raise ValueError",
    "raises an error that cannot be printed": "raise type('E', (Exception,), {'__str__': lambda e: 1 / 0})()",
    "raises an error of 1 MB": "raise RuntimeError('x' * 1_000_000)",
    "assertion": "assert False",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "sys.exit(0)": "sys.exit(0)",
    "generator exit": "raise GeneratorExit",
    "recursion without end": "f = lambda: f()\nf()",
    "hangs": "time.sleep(5)",
    "NaN": "return [*s[:-1], float('nan')]",
    "inf": "return [*s[:-1], float('inf')]",
    "-inf": "return [float('-inf'), *s[1:]]",
    "all NaN": "return [float('nan')] * len(s)",
    "None": "return None",
    "a None among numbers": "return [*s[:-1], None]",
    "nothing": "return []",
    "too few": "return s[:-1]",
    "too many": "return [*s, 0.0]",
    "another length at each call": "return s * len(s)",
    "a number": "return 1.0",
    "a string": "return '1234'",
    "bytes": "return b'1234'",
    "a string among numbers": "return [*s[:-1], '1.0']",
    "a dict": "return dict(enumerate(s))",
    "a dict among numbers": "return [*s[:-1], {}]",
    "a list among numbers": "return [*s[:-1], [1.0]]",
    "a tensor of no dimension": "return torch.tensor(1.0)",
    "a tensor of two dimensions": "return torch.tensor([s])",
    "a column": "return torch.tensor(s)[:, None]",
    "a tensor of NaN": "return torch.tensor(s) * float('nan')",
    "a complex tensor": "return torch.tensor(s, dtype=torch.complex64)",
    "complex numbers": "return [complex(x, 1) for x in s]",
    "a matrix of numpy": "return numpy.array([s])",
    "a complex array": "return numpy.array(s) + 1j",
    "an array of objects": "return numpy.array([*s[:-1], None], dtype=object)",
    "Decimal NaN": "return [*s[:-1], decimal.Decimal('nan')]",
    "1e400 as a whole number": "return [*s[:-1], 10 ** 400]",
    "1e300": "return [1e300 * x for x in s]",
    "1e300 of both signs": "return [1e300 * (-1) ** i for i in range(len(s))]",
    "an iterator that raises": "return (x / 0 for x in s)",
    "an iterator without end": "return itertools.repeat(1.0)",
    "an iterator that hangs": "return (time.sleep(5) or x for x in s)",
    "numbers that do not convert": "return [torch.tensor([1.0, 2.0])] * len(s)",
    "a class": "return float",
}
# What a rude reward does before it returns the right scores; none may change the run.
RUDE: dict[str, str] = {
    "numpy scalars": "return [numpy.float64(x) for x in s]",
    "an array": "return numpy.array(s)",
    "Decimal": "return [decimal.Decimal(x) for x in s]",
    "Fraction": "return [fractions.Fraction(x) for x in s]",
    "a tensor of float64": "return torch.tensor(s, dtype=torch.float64)",
    "a tensor with a gradient": "return torch.tensor(s, dtype=torch.float64, requires_grad=True)",
    "a generator": "return (x for x in s)",
    "a tuple": "return tuple(s)",
    "empties the lists": "p.clear()\nc.clear()",
    "changes the lists": "p[:] = ['evil'] * len(p)\nc.reverse()\nc.append('x')",
    "prints": "print('{\"evil\": true}')\nprint('x' * 10_000)",
    "prints to the file descriptor": "os.write(1, b'noise\\n')",
    "closes stdout": "sys.stdout = open(os.devnull, 'w')",
    "changes the folder": "os.chdir('/')",
    "seeds everything": "torch.manual_seed(1)\nrandom.seed(1)\nnumpy.random.seed(1)",
    "draws": "torch.rand(100)\nrandom.random()\nnumpy.random.rand(9)",
    "torch threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "default dtype float64": "torch.set_default_dtype(torch.float64)",
    "default dtype float16": "torch.set_default_dtype(torch.float16)",
    "default device meta": "torch.set_default_device('meta')",
    "no gradients": "torch.set_grad_enabled(False)",
    "inference mode": "torch.autograd.grad_mode._enter_inference_mode(True)",
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "flushes denormals": "torch.set_flush_denormal(True)",
    "locale": "locale.setlocale(locale.LC_ALL, 'C')",
    "warnings are errors": "warnings.simplefilter('error')",
    "numpy errors raise": "numpy.seterr(all='raise')",
    "recursion limit": "sys.setrecursionlimit(200)",
    "no garbage collection": "gc.disable()",
    "environment": "os.environ['WARP_CACHE'] = '/nonexistent'\nos.environ['HF_HOME'] = '/nonexistent'",
    "umask": "os.umask(0o777)",
    "leaves a thread": "threading.Thread(target=time.sleep, args=(0.3,), daemon=True).start()",
    "leaves a process": "subprocess.Popen(['sleep', '0.3'])",
}
QUICK_BAD = ("raises an error that cannot be printed", "NaN", "too few", "complex numbers", "an iterator without end")
QUICK_RUDE = ("empties the lists", "matmul precision", "default dtype float64", "seeds everything")
# What ends the process on the spot: nobody can say anything then, but nothing may be lost.
FATAL: dict[str, str] = {
    "os._exit(0)": "os._exit(0)",
    "os.abort": "os.abort()",
    "SIGKILL to itself": "os.kill(os.getpid(), 9)",
}
HEAD = """
import decimal, fractions, gc, itertools, locale, os, random, subprocess, sys, threading, time, warnings
from pathlib import Path
import numpy, torch

CALLS = [0]
FAULT = Path({fault!r})

def scores(prompts, completions):
    return [sum((i + 1) * ord(x) % 17 for i, x in enumerate(text)) / 8.0 for text in completions]

def reward(prompts, completions):
    CALLS[0] += 1
    s = scores(prompts, completions)
    case, when = FAULT.read_text().rsplit(" @ ", 1) if FAULT.exists() else ("", "0")
    if case and (int(when) == CALLS[0] or int(when) < 0):
        known = CASES[case](prompts, completions, s)
        return s if known is DEFAULT else known
    return s

DEFAULT = object()
CASES = {{}}
"""


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Train tiny runs with every case."""
    for kind in ("lora",) if quick else ("lora", "full"):
        folder = place / kind
        folder.mkdir()
        with _bench(folder, kind) as bench:
            yield _bad(bench, kind, quick=quick)
            yield _rude(bench, kind, quick=quick)
            if not quick:
                yield _fatal(bench, kind)
            if kind == "lora" and not quick:
                yield _command_line(bench)


class Bench:
    """A tiny configuration whose reward can be switched to any case, and what a run without one leaves.

    Args:
        folder: for the runs, the reward's module and the switch.
        kind: "lora" or "full".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.fault = folder, folder / "fault"
        self.module = f"{MODULE}_{kind}"
        self.source = folder / f"{self.module}.py"
        self.source.write_text(_source(self.fault), encoding="utf-8")
        self.config: WarpConfig = tiny_config(
            folder,
            make_model("llama", folder / "sft"),
            kind=kind,
            reward={"terms": [f"python:{self.module}.reward"]},
            training={"steps": STEPS, "evaluate_every": 0, "save_every": 1, "max_new_tokens": 3},
        )
        self.count = 0
        self.train(folder / "straight")
        self.whole = trained_bytes(folder / "straight")
        self.rows = metrics(folder / "straight")
        # What is on disk when the LATER-th call begins.
        with_stop = partial(self.train, folder / "stopped", should_stop=_after(LATER - 1))
        _interrupted(with_stop)
        self.saved = trained_bytes(folder / "stopped")

    def train(self, out: Path, *, resume: bool = False, **options: Any) -> None:
        """Train with the reward as it is switched, counting its calls from here."""
        sys.modules[self.module].CALLS[0] = 0
        train_warp(self.config, out, devices=[CPU], resume=resume, **options)

    def switch(self, case: str, when: int) -> None:
        """Let the reward's call number `when` (negative: every one) go wrong."""
        self.fault.write_text(f"{case} @ {when}", encoding="utf-8")

    def mend(self) -> None:
        """Let it be right again."""
        self.fault.unlink(missing_ok=True)

    def new_run(self) -> Path:
        """A folder for a run."""
        self.count += 1
        return self.folder / f"run-{self.count}"


@contextmanager
def _bench(folder: Path, kind: str) -> Iterator[Bench]:
    """A bench whose reward can be imported; all that the process had is put back at the end."""
    sys.path.append(str(folder))
    name = f"{MODULE}_{kind}"
    try:
        (folder / f"{name}.py").write_text(_source(folder / "fault"), encoding="utf-8")
        __import__(name)
        yield Bench(folder, kind)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)


def _source(fault: Path) -> str:
    cases = []
    for index, (name, body) in enumerate({**BAD, **RUDE, **FATAL}.items()):
        function = f"def case_{index}(p, c, s):\n{textwrap.indent(body, '    ')}\n"
        rest = "" if "return" in body else "    return DEFAULT\n"
        cases.append(f"{function}{rest}\nCASES[{name!r}] = case_{index}\n")
    return HEAD.format(fault=str(fault)) + "\n".join(cases)


def _bad(bench: Bench, kind: str, *, quick: bool) -> Outcome:
    tally = Tally(
        f"{kind}: a reward that is wrong",
        promise="P6",
        holds="the run stops with one line that names the reward (or the loss that it made infinite), what is on disk "
        "is the state before that step, and the mended run ends with the bytes of one that never met it",
    )
    names = list(BAD)
    # Where the masters are stored has nothing to do with most of them: a third is enough for the second kind.
    for name in QUICK_BAD if quick else names if kind == "lora" else names[::3]:
        for when in (LATER,) if quick else (1, LATER):
            _try_bad(tally, bench, name, when)
    return tally.outcome()


def _try_bad(tally: Tally, bench: Bench, name: str, when: int) -> None:
    out, seen = bench.new_run(), f"{name} at call {when}"
    bench.switch(name, when)
    timed = partial(load_reward, timeout_s=TIMEOUT_S)
    said: WarpError | None = None
    try:
        with mock.patch("warp_core.training.policy_run.load_reward", timed):
            bench.train(out)
    except (RewardError, DivergedError) as error:
        said = error
    except BaseException as error:
        tally.check(False, f"{seen}: {type(error).__name__}: {error!s:.200}")
    finally:
        bench.mend()
    words = str(said)
    tally.check(said is not None, f"{seen}: the run did not stop")
    if said is None:
        return
    tally.check("\n" not in words and len(words) < 600, f"{seen}: not one line: {words[:300]}")
    named = f"python:{bench.module}.reward" in words or (name.startswith("1e300") and "the loss is" in words)
    tally.check(named, f"{seen}: the reward is not named: {words}")
    _check_mended(tally, bench, out, seen, before=bench.saved if when == LATER else {})


def _check_mended(tally: Tally, bench: Bench, out: Path, seen: str, *, before: Mapping[str, bytes]) -> None:
    left = trained_bytes(out)
    tally.check(left == before, f"{seen}: on disk are {sorted(left)}, not the state before the step")
    try:
        bench.train(out, resume=True)
    except Exception as error:
        tally.check(False, f"{seen}: the mended run: {type(error).__name__}: {error}")
        return
    tally.check(trained_bytes(out) == bench.whole, f"{seen}: other weights after the mend")
    tally.check(metrics(out) == bench.rows, f"{seen}: other metrics after the mend")


def _rude(bench: Bench, kind: str, *, quick: bool) -> Outcome:
    tally = Tally(
        f"{kind}: a reward that changes what is not its own",
        promise="P6",
        holds="the numbers are right, so the run goes on, and ends with the bytes of a run whose reward is polite",
    )
    for name in QUICK_RUDE if quick else RUDE:
        out = bench.new_run()
        bench.switch(name, -1)
        with _whole_process():
            try:
                bench.train(out)
            except Exception as error:
                tally.check(False, f"{name}: {type(error).__name__}: {error}")
                continue
            finally:
                bench.mend()
        tally.check(trained_bytes(out) == bench.whole, f"{name}: other weights")
        tally.check(metrics(out) == bench.rows, f"{name}: other metrics")
    return tally.outcome()


def _fatal(bench: Bench, kind: str) -> Outcome:
    tally = Tally(
        f"{kind}: a reward that ends the process",
        promise="P6",
        holds="nothing on disk is lost or half, and the mended run ends with the bytes of one that never met it",
    )
    for name in FATAL:
        for when in (1, LATER):
            out = bench.new_run()
            bench.switch(name, when)
            # Not a fork of this process: GNU's OpenMP has had threads here, and a child of it waits for them for ever.
            process = in_a_process(bench.config, out)
            process.join(PROCESS_S)
            ended = process.exitcode is not None
            process.kill()
            process.join()
            bench.mend()
            tally.check(ended, f"{name} at call {when}: no end within {PROCESS_S:.0f} s")
            _check_mended(tally, bench, out, f"{name} at call {when}", before=bench.saved if when == LATER else {})
    return tally.outcome()


def _command_line(bench: Bench) -> Outcome:
    """`warp-core train` itself: exit codes, one line on stderr, one document on stdout."""
    tally = Tally(
        "warp-core train --json",
        promise="P6",
        holds="exit code 2 (1 where the loss became infinite) with one line that names the reward, no traceback, "
        "nothing on stdout; what a reward prints is never on stdout",
    )
    toml = bench.folder / "run.toml"
    toml.write_text(config_to_toml(bench.config), encoding="utf-8")
    for name in ("NaN", "raises", "sys.exit(0)", "recursion without end", "a string", "too few"):
        bench.switch(name, LATER)
        done = _warp_core(bench, toml, bench.new_run())
        bench.mend()
        lines = [line for line in done.stderr.splitlines() if line.startswith("warp-core:")]
        tally.check(done.returncode == 2, f"{name}: exit code {done.returncode}: {done.stderr[-300:]}")
        tally.check(done.stdout == "", f"{name}: on stdout: {done.stdout[:200]}")
        tally.check(len(lines) == 1 and bench.module in lines[0], f"{name}: {done.stderr[-300:]}")
        tally.check("Traceback" not in done.stderr, f"{name}: a trace: {done.stderr[-300:]}")
    for name in ("prints", "changes the folder"):
        bench.switch(name, -1)
        out = bench.new_run()
        done = _warp_core(bench, toml, out)
        bench.mend()
        tally.check(done.returncode == 0, f"{name}: exit code {done.returncode}: {done.stderr[-300:]}")
        tally.check(_is_document(done.stdout), f"{name}: on stdout: {done.stdout[:200]}")
        if done.returncode == 0:
            tally.check(trained_bytes(out) == bench.whole, f"{name}: other weights")
    return tally.outcome()


def _warp_core(bench: Bench, toml: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "warp_core", "train", str(toml), "--out", str(out), "--json"],
        cwd=bench.folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(bench.folder)))},
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
        check=False,
    )


def _is_document(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _after(calls: int) -> Callable[[], bool]:
    """A should_stop that says so from its `calls`-th question on."""
    left = iter(range(calls - 1))
    return lambda: next(left, None) is None


def _interrupted(train: Callable[[], None]) -> None:
    try:
        train()
    except KeyboardInterrupt:
        return
    raise RuntimeError("the run was not stopped")


@contextmanager
def _whole_process() -> Iterator[None]:
    """What a rude reward may have left changed for good is put back for the next case."""
    import gc
    import locale
    import random
    import warnings

    import numpy as np
    import torch

    folder, limit, umask = Path.cwd(), sys.getrecursionlimit(), os.umask(0o022)
    os.umask(umask)
    kept, place, filters = dict(os.environ), locale.setlocale(locale.LC_ALL), warnings.filters[:]
    threads, output, errors = torch.get_num_threads(), sys.stdout, np.geterr()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        os.chdir(folder)
        os.umask(umask)
        os.environ.clear()
        os.environ.update(kept)
        sys.setrecursionlimit(limit)
        gc.enable()
        locale.setlocale(locale.LC_ALL, place)
        warnings.filters[:] = filters  # type: ignore[index]
        sys.stdout = output
        np.seterr(**errors)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
        torch.set_flush_denormal(False)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
