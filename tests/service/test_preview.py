"""A preview streams what the sampler would draw from each merged model, and scores it as a measurement would."""

import pytest
import torch

from tests.service.selections import TINY
from tests.service.watching import Watched
from tests.training.runs import CPU
from warp_core.errors import ConfigError, DivergedError, PromptError, RewardError
from warp_core.evaluation.evaluate import Subject, completion_kl
from warp_core.policy.loading import load_checkpoint
from warp_core.policy.model import load_policy
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.sampling import row_seed, sample
from warp_core.service import decoding, slots
from warp_core.service.jobs import Cancelled
from warp_core.service.places import single
from warp_core.service.preview import IN_TURN
from warp_core.service.protocol import SFT, PaneRequest, Place, PreviewRequest
from warp_core.service.workbench import Workbench
from warp_core.weights import ResidentMerge, coefficients, compute_geometry

PROMPT = "the film was"
MIDDLE = Place(eta=0.6)


def ask(selection, *places, **settings):
    panes = tuple(PaneRequest(id=f"pane-{number}", place=place) for number, place in enumerate(places))
    wanted = {"session": "s", "prompt": PROMPT, "max_new_tokens": 8, "seed": 3, **settings}
    return PreviewRequest(selection=selection, panes=panes, **wanted)


def previewed(bench, request, **context):
    heard = Watched(**context)
    bench.preview(request, heard)
    return heard


def merged_policy(library, selection, place):
    """The merged model by another road: weights moved in place."""
    sources, recipe = library.sources(selection, place.iteration), library.recipe(selection, place)
    policy = load_policy(sources.sft.path, device=CPU)
    resident = ResidentMerge(policy.model, init=sources.init, policies=sources.policies, towards=sources.towards)
    resident.move(coefficients(recipe, compute_geometry(sources.init, sources.policies)))
    return policy


def drawn(policy, request):
    batch = encode_prompts([request.prompt], policy.tokenizer, chat_template=request.chat_template, device=CPU)
    seeds = [row_seed("preview", request.seed, number) for number in range(request.num_completions)]
    return sample(
        policy,
        batch.repeat(request.num_completions),
        seeds=seeds,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
    )


@pytest.mark.parametrize("kind", ["full", "lora", "later"])
def test_texts_and_scores_are_those_of_the_merged_models(kind, library, made):
    selection = getattr(made, kind)
    count = len(selection.policies)
    places = [SFT, MIDDLE, single(2, count), Place(method="slerp-weights", eta=1.5)]
    request = ask(selection, *places[:3], num_completions=2, reward=("words", "uppercase:0.5"))
    if kind == "lora":
        request = ask(selection, *places, num_completions=2, reward=("words", "uppercase:0.5"))
    heard = previewed(Workbench(library, device=CPU), request)
    sft = library.sources(selection, 1).sft
    reference = load_checkpoint(sft, device=CPU)
    for pane, place in zip(heard.panes, places, strict=False):
        policy = reference if place is SFT else merged_policy(library, selection, place)
        want = drawn(policy, request)
        assert tuple(one.text for one in pane.completions) == want.texts
        assert tuple(one.num_tokens for one in pane.completions) == want.num_tokens
        kl_B = completion_kl(Subject(policy=policy, reference=reference), want, temperature=request.temperature)
        for one, kl in zip(pane.completions, kl_B.tolist(), strict=True):
            assert one.kl == pytest.approx(0.0 if place is SFT else kl, rel=1e-3, abs=1e-5)
            assert one.reward == one.rewards["words"] + 0.5 * one.rewards["uppercase"]
            assert one.rewards["words"] == len(one.text.split())
            assert one.done
        assert (pane.state, pane.place) == ("done", place)
    assert [one.kl for one in heard.panes[0].completions] == [0.0, 0.0]
    assert min(one.kl for pane in heard.panes[1:] for one in pane.completions) > 0.001


def test_a_run_is_previewed_in_any_of_its_iterations(library):
    places = [Place(iteration=1, eta=0.5), Place(iteration=2, eta=0.7), Place(iteration=2, eta=0.7, towards="init")]
    request = ask(TINY, *places)
    heard = previewed(Workbench(library, device=CPU), request)
    assert heard.texts == [drawn(merged_policy(library, TINY, place), request).texts for place in places]
    rewards = {name for pane in heard.panes for one in pane.completions for name in one.rewards}
    assert rewards == {"python:tests.training.rewards.fine", "length"}, "those of the run"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_all_panes_stream_at_once(kind, library, made):
    heard = previewed(Workbench(library, device=CPU), ask(getattr(made, kind), SFT, MIDDLE, Place(eta=1.0)))
    states = [tuple(pane.state for pane in panes) for panes in heard.shown]
    order = ["waiting", "merging", "sampling", "scoring", "done"]
    assert list(dict.fromkeys(states)) == [(state,) * 3 for state in order]
    drawing = [
        [sum(one.num_tokens for one in pane.completions) for pane in panes]
        for panes, state in zip(heard.shown, states, strict=True)
        if state[0] == "sampling"
    ]
    assert all(max(counts) - min(counts) <= 1 for counts in drawing), "no pane runs ahead"
    assert drawing[0] == [0, 0, 0]
    assert drawing[-1] == [8, 8, 8]
    for earlier, later in zip(heard.shown, heard.shown[1:], strict=False):
        for before, after in zip(earlier, later, strict=True):
            for one, other in zip(before.completions, after.completions, strict=False):
                assert other.text.startswith(one.text) or other.done
    assert heard.marks == ["started", "merged", "first_token", "sampled", "scored"]
    assert heard.checkpoints >= 8


def test_the_same_model_in_two_panes_says_the_same(library, made):
    bench = Workbench(library, device=CPU)
    texts = previewed(bench, ask(made.lora, SFT, MIDDLE, SFT, MIDDLE, score=False, num_completions=2)).texts
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert texts[0][0] != texts[0][1]
    alone = previewed(bench, ask(made.lora, MIDDLE, score=False, num_completions=2)).texts
    assert alone == [texts[1]]
    other = previewed(bench, ask(made.lora, MIDDLE, score=False, num_completions=2, seed=4)).texts
    assert other != alone


def test_without_scores(library, made):
    heard = previewed(Workbench(library, device=CPU), ask(made.lora, SFT, MIDDLE, score=False))
    assert {(one.reward, one.kl) for pane in heard.panes for one in pane.completions} == {(None, None)}
    assert heard.marks[-1] == "sampled"
    assert {pane.state for pane in heard.panes} == {"done"}
    assert not any(pane.state == "scoring" for panes in heard.shown for pane in panes)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_ends_within_a_token(kind, library, made):
    bench = Workbench(library, device=CPU)
    request = ask(getattr(made, kind), SFT, MIDDLE)
    previewed(bench, request)
    whole = previewed(bench, request).checkpoints
    assert whole > 10
    for patience in range(0, whole, 3):
        heard = Watched(patience=patience)
        with pytest.raises(Cancelled):
            bench.preview(request, heard)
        drawn_tokens = sum(one.num_tokens for pane in heard.panes for one in pane.completions)
        assert drawn_tokens <= 2 * patience
        assert heard.checkpoints == patience + 1, "nothing goes on after it was cancelled"


def test_the_chat_template(library, made):
    bench = Workbench(library, device=CPU)
    request = ask(made.lora, MIDDLE, chat_template=True)
    found = previewed(bench, request).texts
    assert found == [drawn(merged_policy(library, made.lora, MIDDLE), request).texts]
    assert found != previewed(bench, ask(made.lora, MIDDLE)).texts


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_new_tokens": 250}, ConfigError, "256 positions"),
        ({"prompt": "x" * 300}, ConfigError, "prompt of 300 tokens"),
        ({"reward": ("nonsense",)}, RewardError, "unknown reward 'nonsense'"),
    ],
)
def test_mistakes_are_said(settings, error, message, library, made):
    with pytest.raises(error, match=message):
        previewed(Workbench(library, device=CPU), ask(made.lora, SFT, MIDDLE, **settings))


def test_a_model_without_chat_template(library, made, monkeypatch):
    bench = Workbench(library, device=CPU)
    previewed(bench, ask(made.lora, SFT))
    monkeypatch.setattr(bench._held.bank.policy.tokenizer, "chat_template", None)
    with pytest.raises(PromptError, match="no chat template"):
        previewed(bench, ask(made.lora, SFT, chat_template=True))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_distributions_that_are_not_kept_are_computed_again(kind, library, made, monkeypatch):
    request = ask(getattr(made, kind), SFT, MIDDLE, Place(eta=1.0), num_completions=2)
    bench = Workbench(library, device=CPU)
    kept = previewed(bench, request)
    monkeypatch.setattr(decoding, "KEPT_NUMEL", 1)
    again = previewed(bench, request)
    assert again.texts == kept.texts
    for pane, other in zip(kept.panes, again.panes, strict=True):
        kls = [[one.kl for one in panes.completions] for panes in (pane, other)]
        assert kls[0] == pytest.approx(kls[1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("is_kept", [True, False])
def test_models_that_take_turns_say_the_same(is_kept, library, made, monkeypatch):
    request = ask(made.full, SFT, MIDDLE, Place(eta=1.0), num_completions=2)
    together = previewed(Workbench(library, device=CPU), request)
    assert IN_TURN not in together.said
    monkeypatch.setattr(slots, "free_bytes", lambda device: 0)
    if not is_kept:
        monkeypatch.setattr(decoding, "KEPT_NUMEL", 1)
    bench = Workbench(library, device=CPU)
    turns = previewed(bench, request)
    assert IN_TURN in turns.said
    assert turns.texts == together.texts
    for pane, other in zip(together.panes, turns.panes, strict=True):
        for one, two in zip(pane.completions, other.completions, strict=True):
            assert (one.reward, one.kl) == (two.reward, pytest.approx(two.kl, rel=1e-3, abs=1e-5))
    counts = [[sum(one.num_tokens for one in pane.completions) for pane in panes] for panes in turns.shown]
    assert [0, 0, 0] in counts
    assert [16, 0, 0] in counts, "the first is done before the second begins"
    assert [16, 16, 0] in counts


def test_a_broken_model_is_said_to_be(library, made):
    bench = Workbench(library, device=CPU)
    previewed(bench, ask(made.lora, SFT, score=False))
    with torch.no_grad():
        bench._held.bank.policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="pane 'pane-1' is not a number"):
        previewed(bench, ask(made.lora, SFT, MIDDLE))
