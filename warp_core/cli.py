"""The command line: `warp-core COMMAND`, also `python -m warp_core`.

Exit code 0 done, 1 a fault of ours (its trace and one line on stderr), 2 the user's mistake (one line on stderr), 130
interrupted. The answer goes to stdout and nothing else does, with --json one JSON document; progress goes to stderr.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

import warp_core
from warp_core.commands.answer import INTERRUPTED
from warp_core.environment import quiet_threads
from warp_core.service.faults import explain

__all__ = ["build_parser", "main"]

METHODS = ("slerp", "lerp", "slerp-weights")
GRANULARITIES = ("layer", "tensor", "model")
KINDS = ("full", "adapter")
DTYPES = ("float32", "bfloat16", "float16")
AGAIN_S = 0.05
COMPUTE_DTYPES = DTYPES[:2]
SCALES = ("smoke", "cpu", "gpu")
STUDIES = "anchor, slerp, liti, scaling-m, iterate, weights, hyper, length, diversity, preference, benchmark"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_shown(' '.join(message.split()))} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; every subcommand names the function that does it, imported when it is called."""
    parser = _Parser(
        prog="warp-core",
        description="Weight Averaged Rewarded Policies: train, merge, measure and export language-model policies.",
    )
    parser.add_argument("--version", action="version", version=f"warp-core {warp_core.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (_app, _serve, _demo, _train, _geometry, _merge, _evaluate, _front, _sample, _export, _study):
        add(commands)
    for add in (_check, _doctor):
        add(commands)
    return parser


def _command(commands: Any, name: str, does: str, help_text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    command.set_defaults(does=does)
    command.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else")
    return command


def _app(commands: Any) -> None:
    one = _command(commands, "app", "app:app", "The web app with an engine: drag, watch, compare, export.")
    one.add_argument(
        "run", metavar="RUN", nargs="?", help="run folder or name to open at first (default: the bundled demo-run)"
    )
    one.add_argument("--port", metavar="P", type=_port, help="of the app (default: 8501, or the next free one)")
    one.add_argument("--engine", metavar="URL", help="use the engine at this address, e.g. http://127.0.0.1:8765")
    _token_option(one, otherwise="needed with --engine")
    one.add_argument("--headless", action="store_true", help="never open a window")


def _serve(commands: Any) -> None:
    one = _command(commands, "serve", "serve:serve", "The engine alone, behind HTTP, for this machine only.")
    one.add_argument(
        "--host",
        metavar="H",
        action="append",
        help="address to listen on, to open the engine to other machines (default: 127.0.0.1); given again, another"
        " name that requests may call this machine by",
    )
    one.add_argument("--port", metavar="P", type=_port, default=8765, help="0 for any that is free (default: 8765)")
    _token_option(one, otherwise="default: a new one, in a file that is named on stderr")
    one.add_argument("--run", metavar="RUN", action="append", help="a run folder outside the workspace to list, too")


def _token_option(one: argparse.ArgumentParser, *, otherwise: str) -> None:
    one.add_argument(
        "--token-file",
        metavar="F",
        help=f"file with the engine's token, unless $WARP_ENGINE_TOKEN has it ({otherwise})",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535 (got {text[:20]!r})")
    return int(text)


def _demo(commands: Any) -> None:
    one = _command(commands, "demo", "demo:demo", "WARP on the embedded model, end to end; at once if it is done.")
    one.add_argument("--out", metavar="RUN", help="run folder (default: demo in the workspace)")
    one.add_argument("--headless", action="store_true", help="never open a window")
    _set_option(one)


def _train(commands: Any) -> None:
    one = _command(commands, "train", "run:train", "Algorithm 1: M RL runs, SLERP, LITI, I times.")
    one.add_argument("config", metavar="CONFIG.toml", help="what to run; docs/config.md lists every field")
    one.add_argument("--out", metavar="RUN", required=True, help="run folder; it holds everything")
    one.add_argument("--resume", action="store_true", help="continue the run in --out")
    _set_option(one)


def _set_option(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change a field of the configuration, e.g. training.steps=50; may be given several times",
    )


def _geometry(commands: Any) -> None:
    one = _command(commands, "geometry", "models:geometry", "Angles, norms and cosines of task vectors per layer.")
    _models(one, required=True)
    one.add_argument("--granularity", choices=GRANULARITIES, default="layer", help="what a row is (default: layer)")


def _models(one: argparse.ArgumentParser, *, required: bool) -> None:
    one.add_argument("--init", metavar="A", required=required, help="the init: folder, Hub id or smollm2-135m")
    one.add_argument(
        "--policies", metavar="B", nargs="+", required=required, help="policies: full checkpoints or adapters"
    )
    one.add_argument(
        "--base", metavar="MODEL", help="base model of adapters, where it is neither the folder they name nor --init"
    )


def _recipe(one: argparse.ArgumentParser, *, method_action: str = "store") -> None:
    repeated = "; several times for more fronts" if method_action == "append" else ""
    one.add_argument("--method", choices=METHODS, action=method_action, help=f"how to merge (default: slerp){repeated}")
    one.add_argument("--weights", metavar="W", nargs="+", type=float, help="share of each policy; they add up to 1")
    one.add_argument("--granularity", choices=GRANULARITIES, help="what shares one angle (default: layer)")


def _output(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", metavar="DIR", required=True, help="folder to make; it must not exist")
    one.add_argument("--as", dest="kind", choices=KINDS, default="full", help="a whole model, or a PEFT folder")
    one.add_argument("--dtype", choices=DTYPES, help="of the weights (default: that of the init)")
    one.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="e.g. 200MB (default: 5GB)")


def _merge(commands: Any) -> None:
    one = _command(commands, "merge", "models:merge", "Merge policies into a model folder.")
    _models(one, required=True)
    _recipe(one)
    one.set_defaults(method="slerp", granularity="layer")
    one.add_argument("--eta", type=float, default=1.0, help="LITI: 0 is the init, 1 the merged policies, up to 2")
    _output(one)


def _measuring(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--reward",
        metavar="R[:WEIGHT]",
        action="append",
        help="a built-in name, a folder or Hub id of a classifier, or python:module.function; several are added up",
    )
    one.add_argument(
        "--prompts", metavar="P", default="reviews-eval", help="a file, one prompt a line, or reviews-eval"
    )
    one.add_argument("--num-prompts", metavar="N", type=_count, help="only the first so many prompts")
    one.add_argument("--samples", metavar="K", type=_count, default=2, help="completions per prompt (default: 2)")
    one.add_argument("--kl", choices=("exact", "mc"), default="exact", help="KL estimator (default: exact)")
    _generation(one)


def _generation(one: argparse.ArgumentParser) -> None:
    one.add_argument("--max-new-tokens", metavar="T", type=_count, default=24, help="length limit (default: 24)")
    one.add_argument(
        "--temperature", type=_temperature, default=0.9, help="of sampling and log-probabilities (default: 0.9)"
    )
    one.add_argument("--seed", type=int, default=1234, help="common random numbers (default: 1234)")
    one.add_argument("--chat", action="store_true", help="use the model's chat template")
    one.add_argument("--dtype", choices=COMPUTE_DTYPES, default="float32", help="to compute in (default: float32)")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 (got {text!r})")
    return value


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Beyond these the logits overflow, or the choice is greedy or uniform all the same.
    if not 0.01 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0.01 to 100 (got {text!r})")
    return value


def _evaluate(commands: Any) -> None:
    one = _command(commands, "evaluate", "measure:evaluate", "Reward, KL to an anchor, length, diversity.")
    one.add_argument("--policy", metavar="A", required=True, help="the policy: folder, adapter, Hub id or smollm2-135m")
    one.add_argument("--anchor", metavar="B", required=True, help="the SFT policy that the KL is to")
    one.add_argument("--base", metavar="MODEL", help="base model of an adapter, where it is not where it says")
    _measuring(one)


def _front(commands: Any) -> None:
    one = _command(commands, "front", "front:front", "Measure reward-vs-KL fronts of a run, or of any policies.")
    one.add_argument(
        "run", metavar="RUN", nargs="?", help="run folder or name; it says how to measure what no option says"
    )
    _models(one, required=False)
    one.add_argument("--anchor", metavar="MODEL", help="the SFT policy, where it is not --init")
    one.add_argument("--etas", metavar="ETA", nargs="+", type=float, help="LITI coefficients (default: the run's)")
    _recipe(one, method_action="append")
    one.add_argument("--iteration", metavar="I", type=_count, action="append", help="only this iteration of the run")
    one.add_argument("--to-init", action="store_true", help="also the curves towards each later iteration's own init")
    one.add_argument("--html", metavar="F", help="write the plot to this file")
    one.add_argument("--csv", metavar="F", help="write the table to this file")
    one.add_argument(
        "--reference",
        metavar="POINT",
        help="show differences to this point: sft, policy-1, slerp:0.3, 2/slerp:0.3 in iteration 2 (default: sft)",
    )
    _measuring(one)
    # A run says itself how it is measured, unless the command line says otherwise.
    names = ("dtype", "prompts", "samples", "kl", "max_new_tokens", "temperature", "seed")
    one.set_defaults(unless_said={name: one.get_default(name) for name in names})
    one.set_defaults(**dict.fromkeys(names))


def _sample(commands: Any) -> None:
    one = _command(commands, "sample", "measure:sample", "Draw completions of a prompt.")
    one.add_argument("--policy", metavar="A", required=True, help="the policy: folder, adapter, Hub id or smollm2-135m")
    one.add_argument("--prompt", metavar="TEXT", required=True, help="what to continue")
    one.add_argument("--n", metavar="N", type=_count, default=1, help="completions (default: 1)")
    one.add_argument("--base", metavar="MODEL", help="base model of an adapter, where it is not where it says")
    one.add_argument("--reward", metavar="R[:WEIGHT]", action="append", help="also score them")
    _generation(one)


def _export(commands: Any) -> None:
    one = _command(commands, "export", "models:export", "Write the chosen model of a run as a Hugging Face folder.")
    one.add_argument("run", metavar="RUN", help="run folder or name")
    one.add_argument("--iteration", metavar="I", type=_count, help="(default: the last one that is finished)")
    one.add_argument(
        "--eta", type=float, required=True, help="LITI: 0 is the SFT policy, 1 the merged policies, up to 2"
    )
    one.add_argument(
        "--to-init", action="store_true", help="interpolate towards the iteration's init, not the SFT policy"
    )
    one.add_argument("--base", metavar="MODEL", help="the SFT policy, where it is not where the run says")
    _recipe(one)
    _output(one)


def _study(commands: Any) -> None:
    one = _command(commands, "study", "study:study", "A figure or table of the paper, measured on this machine.")
    one.add_argument("name", metavar="NAME", help=f"all, or one of {STUDIES}")
    one.add_argument(
        "--scale",
        choices=SCALES,
        help="smoke: a tiny random model; cpu: SmolLM2 with LoRA; gpu: full fine-tuning (default: gpu where there is"
        " one, else cpu)",
    )
    one.add_argument("--out", metavar="DIR", help="where to write (default: docs/studies, and docs/results.md)")
    one.add_argument(
        "--budget-minutes", metavar="N", type=_count, help="stop after about N minutes; the same command goes on"
    )
    one.add_argument("--plan", action="store_true", help="say what is missing and how long it takes, and do nothing")
    one.add_argument("--seeds", metavar="S", type=_count, help="at most so many seeds (default: those of the scale)")
    one.add_argument("--text", metavar="FILE", help="held-out text for the perplexities of benchmark")


def _check(commands: Any) -> None:
    one = _command(commands, "check", "models:check", "Is this model folder safe, whole and mixable?")
    one.add_argument("folder", metavar="DIR", help="a full checkpoint or an adapter")
    one.add_argument("--init", metavar="A", help="also: can it be mixed with this init?")
    one.add_argument("--base", metavar="MODEL", help="base model of an adapter, where it is not where it says")


def _doctor(commands: Any) -> None:
    _command(commands, "doctor", "doctor:doctor", "Versions, devices, and the measured speed of the dtypes.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if argv is None and os.name == "posix" and sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        # PYTHONUTF8=0 in an ASCII locale: configurations and libraries could not name a file beyond ASCII.
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    with _sigterm_interrupts(), _lost_interrupts_come_again():
        try:
            return _run(argv)
        except KeyboardInterrupt:
            with _deaf():
                return _fail(INTERRUPTED, 130)


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    quiet_threads()
    try:
        os.getcwd()  # noqa: PTH109 - only whether there is one: MKL ends the process where there is none
    except FileNotFoundError:
        return _fail("the folder that you are in has been removed: `cd` to another one", 2)
    module, function = args.does.split(":")
    try:
        with _stdout_kept_free() as announce:
            # For what a command has to say before it ends.
            args.announce = lambda document, text: announce(json.dumps(document) if args.json else text)
            answer = getattr(importlib.import_module(f"warp_core.commands.{module}"), function)(args)
        _print(json.dumps(answer.document, allow_nan=False) if args.json else answer.text)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A panic of a library in Rust is no Exception; SystemExit passes.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return _explain(error)
        raise
    code: int = answer.code
    return code


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that unfinished output is cleared away and the exit code is 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _lost_interrupts_come_again() -> Iterator[None]:
    """Send an interrupt once more that Python has dropped.

    Where a signal arrives in a callback of the garbage collector or of the import system, Python says that it ignores
    the exception, and goes on: the command would never end.
    """
    before, over = sys.unraisablehook, threading.Event()

    def send() -> None:
        if not over.wait(AGAIN_S):
            os.kill(os.getpid(), signal.SIGINT)

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Thread(target=send, name="interrupt", daemon=True).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = before


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Hear no second signal while the first one is answered: it would end in a trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _stdout_kept_free() -> Iterator[Callable[[str], None]]:
    """Send to stderr what a reward function, a library or a child process prints: stdout is for the answer alone.

    Yields what still prints there.
    """
    before = sys.stdout
    if before is None or sys.stderr is None:  # started without them
        yield lambda text: None
        return
    before.flush()
    try:
        ours, theirs = before.fileno(), sys.stderr.fileno()
        kept = os.dup(ours)
    except (OSError, ValueError):  # a test's or a notebook's stdout is no file
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda text: _print(text, before)
        return
    os.dup2(theirs, ours)
    try:
        with contextlib.redirect_stdout(sys.stderr), open(kept, "w", encoding=before.encoding, closefd=False) as free:
            yield lambda text: _print(text, free)
    finally:
        os.dup2(kept, ours)
        os.close(kept)


def _print(text: str, file: TextIO | None = None) -> None:
    """Print to stdout or to a file; characters that its encoding lacks are escaped."""
    encoding = getattr(file or sys.stdout, "encoding", None) or "utf-8"
    print(_shown(text).encode(encoding, errors="backslashreplace").decode(encoding), file=file, flush=True)


def _shown(text: str) -> str:
    """Escape what would command a terminal: a model's text is only ever text."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else ascii(c)[1:-1] for c in text)


def _explain(error: BaseException) -> int:
    """Say on stderr what went wrong: one line for what the user can mend, the trace too for what is our fault."""
    fault = explain(error, see="the lines above")
    if not fault.is_known:
        traceback.print_exception(error)
    return _fail(fault.message, 2 if fault.is_users else 1)


def _fail(message: str, code: int) -> int:
    print(f"warp-core: {_shown(' '.join(message.split()))}", file=sys.stderr)
    return code
