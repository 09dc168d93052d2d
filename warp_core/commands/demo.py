"""The command `demo`: three-stage WARP on the embedded model, from nothing to a front, kept for the next time."""

import time
import webbrowser
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from warp_core.commands.answer import Answer
from warp_core.commands.console import has_screen, say
from warp_core.commands.front import compare_points, front_document, measure_run, samples_of_run
from warp_core.commands.progress import Clock, duration
from warp_core.commands.run import require_usable, train_with_progress
from warp_core.evaluation.paired import Comparison
from warp_core.evaluation.points import Point
from warp_core.evaluation.report import front_table, write_front_csv, write_front_html
from warp_core.policy.model import pick_device
from warp_core.training.config import load_config
from warp_core.workspace.assets import assets_root
from warp_core.workspace.paths import run_path
from warp_core.workspace.publish import write_json_atomic
from warp_core.workspace.runs import RunFolder

__all__ = ["demo"]

TITLE = "WARP on SmolLM2-135M-Instruct: sentiment of review continuations"


def demo(args: Namespace) -> Answer:
    """Train the demo's runs, merge, measure the front; at once if that is done already."""
    config = load_config(assets_root() / "demo.toml", overrides=args.set)
    out = Path(args.out) if args.out else run_path("demo")
    run = RunFolder(out)
    started = time.monotonic()
    steps = sum(config.steps_in(i) for i in range(1, config.warp.iterations + 1)) * config.warp.policies
    measured = 1 + config.warp.policies + len(config.evaluation.etas) * len(config.evaluation.methods)
    todo = {"step": steps, "measure": measured * config.warp.iterations}
    clock = Clock(todo, guess_s={"step": 11.0, "measure": 18.0})
    if not run.about_file.exists():
        require_usable(config, out)
        say(
            f"WARP on {config.model.name}, on {_device()}: {config.warp.policies} RL runs of {config.steps_in(1)} "
            f"steps, SLERP, LITI, the front; about {duration(clock.left_s())}. Ctrl-C keeps what is done."
        )
    run = train_with_progress(config, out, resume=run.about_file.exists(), clock=clock)
    clock.todo["step"] = 0  # all done, in this session or before
    points = measure_run(run, config, clock=clock)
    comparisons = compare_points(points, samples_of_run(run, points))
    html = _write_results(run, points, comparisons)
    say(f"done after {duration(time.monotonic() - started)}; everything is in {run.path}")
    if not args.headless and has_screen():
        webbrowser.open(html.resolve().as_uri())
    files = {"out": str(run.path), "html": str(html), "csv": str(run.path / "front.csv")}
    document = front_document(points, comparisons=comparisons) | files
    text = f"{front_table(points, comparisons=comparisons)}\n\nplot:  {html}\ntable: {run.path / 'front.csv'}"
    return Answer(document=document, text=text)


def _device() -> str:
    device = pick_device()
    return "the CPU" if device.type == "cpu" else f"the GPU ({device})"


def _write_results(run: RunFolder, points: list[Point], comparisons: Mapping[str, Comparison]) -> Path:
    write_json_atomic(run.path / "front.json", front_document(points, comparisons=comparisons))
    write_front_csv(run.path / "front.csv", points, comparisons=comparisons)
    html = run.path / "front.html"
    reward = "Reward (sentiment, log-odds of positive)"
    write_front_html(html, points, title=TITLE, reward_label=reward, comparisons=comparisons)
    return html
