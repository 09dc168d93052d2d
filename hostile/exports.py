"""Attack: places of the sliders that are looked at, exported and opened by other programs: is it the same model?"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import PROMPTS, REWARD, connect, engine_here, finished, random_place
from tests.tiny import FAMILIES, load_model, logits_of, make_adapter, make_model, make_policies
from warp_core.policy.model import load_policy
from warp_core.service.client import HttpEngine
from warp_core.service.documents import ExportReport
from warp_core.service.protocol import ExportRequest, Job, JobState, PaneRequest, Place, PreviewRequest, Selection
from warp_core.weights import (
    Checkpoint,
    Recipe,
    ResidentMerge,
    coefficients,
    compute_geometry,
    make_recipe,
    merge_to_folder,
    open_checkpoint,
)
from warp_core.workspace.paths import workspace_root

SEED = 20261123
SEEN, QUICK_SEEN = 40, 3
FILES, QUICK_FILES = 6, 1
NEW_TOKENS = 24
NEAR = 1e-4  # logits of an adapter: PEFT multiplies the factors with the activations, the engine with each other


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is merged: the base, and policies as full folders or as adapters over it."""

    name: str
    init: Path
    policies: tuple[Path, ...]
    forms: tuple[str, ...]
    dtype: torch.dtype = torch.float32

    @property
    def selection(self) -> Selection:
        """For the engine."""
        return Selection(init=str(self.init), policies=tuple(map(str, self.policies)))


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Export what a preview showed and look at it again; and compare the files with the model in memory."""
    draw = random.Random(SEED)
    families = ("llama", "gpt2") if quick else FAMILIES
    everything = [one for family in families for one in _sources(place / family, family)]
    seen = [one for one in everything if one.name.startswith("llama")]
    yield _previewed(place / "workspace", seen, draw, QUICK_SEEN if quick else SEEN)
    yield from _opened(place / "out", everything, draw, QUICK_FILES if quick else FILES)


def _sources(folder: Path, family: str) -> list[Sources]:
    init = make_model(family, folder / "init", tied=True if family == "llama" else None, max_shard_size=20_000)
    half = make_model(family, folder / "half", dtype=torch.bfloat16)
    adapters = tuple(make_adapter(init, folder / f"adapter{m}", seed=m, scale=0.3) for m in range(2))
    full = tuple(make_policies(init, folder, num=2, scale=0.1))
    halves = tuple(make_policies(half, folder / "halves", num=2, scale=0.1))
    return [
        Sources(name=f"{family}, full", init=init, policies=full, forms=("full",)),
        Sources(name=f"{family}, bfloat16", init=half, policies=halves, forms=("full",), dtype=torch.bfloat16),
        Sources(name=f"{family}, adapters", init=init, policies=adapters, forms=("full", "adapter")),
    ]


def _previewed(workspace: Path, everything: list[Sources], draw: random.Random, rounds: int) -> Outcome:
    """Look at a place, export it, and look at the folder in the place of the SFT policy."""
    tally = Tally(
        "previews of places and of their exports",
        promise="P9",
        holds="completions, their lengths and rewards are the same, character by character, unless the weights were"
        " rounded and the report says so",
    )
    texts, rounded = set(), 0
    with engine_here() as url, connect(url) as engine:
        for number in range(rounds):
            sources = everything[number % len(everything)]
            where, prompt, seed = random_place(draw), draw.choice(PROMPTS), draw.randrange(2**31)
            shown = _said(_preview(engine, sources.selection, where, prompt, seed))
            keeps = sources.dtype == torch.float32 or number % 2 == 0
            request = ExportRequest(
                session="exports",
                selection=sources.selection,
                place=where,
                name=f"e{number}",
                max_shard_size="20KB",
                dtype="float32" if keeps else None,
            )
            job = finished(engine, engine.submit(request))
            if job.state is not JobState.DONE:
                tally.check(False, f"{sources.name} at {where}: the export: {job.state}, {job.error}")
                continue
            folder = workspace_root() / "exports" / f"e{number}"
            alone = Selection(init=str(folder), policies=(str(folder),))
            again = _said(_preview(engine, alone, Place(eta=0.0), prompt, seed))
            told = ExportReport.model_validate(job.result).rounded
            if keeps:
                tally.check(shown == again and len(shown) > 0, f"{sources.name} at {where}: {shown} became {again}")
                tally.check(told is None, f"{sources.name}: said to be rounded {told}")
            else:
                tally.check(told == ("float32", "bfloat16"), f"{sources.name} is rounded, and said is {told}")
                rounded += 1
            texts.add(shown)
            shutil.rmtree(folder)
    tally.check(len(texts) == rounds, f"only {len(texts)} of {rounds} places said something of their own")
    shutil.rmtree(workspace, ignore_errors=True)
    return tally.outcome(f"{rounded} of {rounds} rounded")


def _preview(engine: HttpEngine, selection: Selection, where: Place, prompt: str, seed: int) -> Job:
    request = PreviewRequest(
        session="exports",
        selection=selection,
        prompt=prompt,
        panes=(PaneRequest(id="current", place=where),),
        seed=seed,
        num_completions=2,
        max_new_tokens=NEW_TOKENS,
        reward=REWARD,
    )
    return finished(engine, engine.submit(request))


def _said(job: Job) -> tuple[tuple[str, int, float | None], ...]:
    """What a preview says, without KLs: those are to another SFT policy."""
    return tuple((one.text, one.num_tokens, one.reward) for pane in job.panes for one in pane.completions)


def _opened(out: Path, everything: list[Sources], draw: random.Random, rounds: int) -> Iterator[Outcome]:
    """Open exports with transformers or PEFT beside the model in memory that a preview would use."""
    full = Tally(
        "full exports opened by transformers",
        promise="P9",
        holds="logits and greedy completions are those of the model in memory, bit for bit",
    )
    adapters = Tally(
        "adapter exports opened by PEFT",
        promise="P9",
        holds=f"greedy completions are those of the model in memory, and logits within {NEAR:g}",
    )
    furthest = 0.0
    for sources in everything:
        init = open_checkpoint(sources.init)
        policies = [open_checkpoint(policy, base=sources.init) for policy in sources.policies]
        geometry = compute_geometry(init, policies)
        policy = load_policy(sources.init, device=torch.device("cpu"), dtype=sources.dtype)
        resident = ResidentMerge(policy.model, init=init, policies=policies)
        for _ in range(rounds):
            where = random_place(draw)
            recipe = make_recipe(init, policies, method=where.method, weights=where.weights, eta=where.eta)
            resident.move(coefficients(recipe, geometry))
            for form in sources.forms:
                if form == "adapter" and where.method == "slerp-weights":
                    continue  # no combination of the factors alone
                other = _exported(out, recipe, init, policies, form, sources)
                far = float((logits_of(policy.model) - logits_of(other)).abs().max())
                same = torch.equal(_greedy(policy.model), _greedy(other))
                if form == "full":
                    full.check(same and far == 0.0, f"{sources.name} at {where}: logits {far:g} apart, greedy {same}")
                else:
                    furthest = max(far, furthest)
                    adapters.check(same and far < NEAR, f"{sources.name} at {where}: {far:g} apart, greedy {same}")
    yield full.outcome()
    yield adapters.outcome(f"logits at most {furthest:.1g} apart")


def _exported(
    out: Path, recipe: Recipe, init: Checkpoint, policies: list[Checkpoint], form: str, sources: Sources
) -> torch.nn.Module:
    shutil.rmtree(out, ignore_errors=True)
    geometry = compute_geometry(init, policies)
    merge_to_folder(
        recipe,
        init=init,
        policies=policies,
        geometry=geometry,
        out=out,
        kind="adapter" if form == "adapter" else "full",
        max_shard_size=20_000,
    )
    return load_model(out, base=sources.init if form == "adapter" else None, dtype=sources.dtype)


def _greedy(model: torch.nn.Module) -> torch.Tensor:
    """Greedy completions of fixed prompts, as token ids."""
    tokens = torch.randint(0, 256, (3, 10), generator=torch.Generator().manual_seed(SEED))
    found: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=256,
    )
    return found
