"""Measured places are points of the front: the ids and numbers of the command, whatever happens in between."""

import shutil

import pytest

from tests.service.selections import TINY
from tests.service.watching import Watched
from tests.training.runs import CPU
from warp_core.errors import RecipeError, WorkspaceError
from warp_core.evaluation import sweep as sweep_module
from warp_core.service.fronts import front_document
from warp_core.service.jobs import Cancelled
from warp_core.service.places import single
from warp_core.service.protocol import SFT, MeasureRequest, PaneRequest, Place, PreviewRequest, Selection
from warp_core.service.workbench import Workbench
from warp_core.workspace.results import Results

COMPLETIONS = 3 * 2  # prompts of the tiny run, samples of each
PLACES = [
    SFT,
    single(2, 2),
    Place(eta=0.5),
    Place(iteration=2, eta=0.5),
    Place(iteration=2, eta=0.5, towards="init"),
    Place(iteration=2, method="lerp", eta=1.0),
    single(1, 2, iteration=2),
]


def ask(selection, *places, **settings):
    return MeasureRequest(session="s", selection=selection, places=places, **settings)


def measured(bench, request, **context):
    heard = Watched(**context)
    return bench.measure(request, heard)["keys"], heard


def points(library, selection=TINY):
    store = Results(library.store_path(selection))
    try:
        return dict(store.items())
    finally:
        store.close()


@pytest.fixture
def empty(library):
    """The library with a run whose front is not measured, and the points that it had."""
    known = points(library)
    library.store_path(TINY).unlink()
    return library, known


def assert_alike(got, want):
    """The same point, filed alike; the KL up to rounding, which depends on what else was in its batch."""
    rounded = {name: pytest.approx(want[name], rel=1e-5, abs=1e-6) for name in ("kl", "kl_se")}
    assert got == want | rounded


def never(*args, **kwargs):
    raise AssertionError("a model is loaded")


def test_stored_points_come_at_once(library, monkeypatch):
    monkeypatch.setattr(sweep_module, "load_policy", never)
    keys, heard = measured(Workbench(library, device=CPU), ask(TINY, *PLACES))
    assert set(keys) <= points(library).keys()
    assert len(set(keys)) == len(PLACES)
    assert heard.progressed == []


def test_measured_points_are_those_of_the_command(empty):
    library, known = empty
    keys, heard = measured(Workbench(library, device=CPU), ask(TINY, *PLACES))
    found = points(library)
    assert list(found) == [key for key in found if key in keys]
    for key in keys:
        assert_alike(found[key], known[key])
    assert [found[key]["kind"] for key in keys] == ["sft", "policy", "merge", "merge", "merge", "merge", "policy"]
    store, before = Results(library.store_path(TINY)), len(keys) * COMPLETIONS
    assert len(store.samples(keys[3])) == COMPLETIONS
    store.close()
    assert heard.progressed[-1][:2] == (before, before)
    dones = [done for done, _, _ in heard.progressed]
    assert dones == sorted(dones)
    messages = [message for _, _, message in heard.progressed]
    assert any(message.endswith("(points 1 to 3 of 7): 18 of 18 completions") for message in messages)
    assert any(message.endswith("(points 4 to 7 of 7): 24 of 24 completions") for message in messages)
    assert heard.checkpoints > 2 * 4, "every token of both groups lets others go first"


def test_the_keys_are_those_of_the_front(empty):
    library, _ = empty
    keys, _ = measured(Workbench(library, device=CPU), ask(TINY, *PLACES))
    front = {point.key: point for point in front_document(library, TINY).points}
    assert [front[key].place for key in keys] == PLACES


def test_a_preview_in_a_pause_changes_no_number(empty):
    library, known = empty
    bench = Workbench(library, device=CPU)
    panes = tuple(PaneRequest(id=str(n), place=place) for n, place in enumerate([SFT, Place(iteration=2, eta=1.3)]))
    request = PreviewRequest(session="t", selection=TINY, prompt="b", panes=panes, max_new_tokens=3)
    seen = []

    def preview():
        if heard.checkpoints % 3 == 2:
            inner = Watched()
            bench.preview(request, inner)
            seen.append(inner.texts)

    heard = Watched(between=preview)
    keys = bench.measure(ask(TINY, *PLACES), heard)["keys"]
    found = points(library)
    for key in keys:
        assert_alike(found[key], known[key])
    assert len(seen) > 5
    assert seen.count(seen[0]) == len(seen)


def test_another_selection_in_a_pause_changes_no_number(empty, made):
    library, known = empty
    bench = Workbench(library, device=CPU)
    panes = (PaneRequest(id="a", place=Place(eta=1.3)),)
    request = PreviewRequest(session="t", selection=made.full, prompt="b", panes=panes, max_new_tokens=2)

    def preview():
        if heard.checkpoints in (5, 20):
            bench.preview(request, Watched())

    heard = Watched(between=preview)
    keys = bench.measure(ask(TINY, *PLACES[:4]), heard)["keys"]
    found = points(library)
    for key in keys:
        assert_alike(found[key], known[key])


def test_cancelled_it_keeps_what_is_measured_and_nothing_half(empty, monkeypatch):
    monkeypatch.setattr(sweep_module, "_TOGETHER", 1)  # points that share a batch are stored together
    library, known = empty
    bench = Workbench(library, device=CPU)
    request = ask(TINY, SFT, Place(eta=0.5), Place(eta=1.0))
    patience = 0
    counts = []
    while True:
        heard = Watched(patience=patience)
        try:
            bench.measure(request, heard)
            break
        except Cancelled:
            assert heard.checkpoints == patience + 1
            counts.append(len(points(library)))
            patience += 4
    assert counts[0] == 0
    assert set(counts) >= {0, 1, 2}
    assert counts == sorted(counts)
    for key, point in points(library).items():
        assert_alike(point, known[key])


def test_a_few_prompts_are_another_evaluation(library):
    bench = Workbench(library, device=CPU)
    usual, _ = measured(bench, ask(TINY, Place(eta=0.5)))
    keys, heard = measured(bench, ask(TINY, Place(eta=0.5), num_prompts=2, samples_per_prompt=1, reward=("words",)))
    assert keys != usual
    point = points(library)[keys[0]]
    assert point["n"] == 2
    assert set(point["rewards"]) == {"words"}
    assert heard.progressed[-1][:2] == (2, 2)


def test_the_model_is_kept_for_the_next_measurement(library, monkeypatch):
    bench = Workbench(library, device=CPU)
    loads = []
    original = sweep_module.load_policy
    monkeypatch.setattr(sweep_module, "load_policy", lambda *args, **kw: loads.append(1) or original(*args, **kw))
    for request in [
        ask(TINY, Place(iteration=2, eta=0.11)),
        ask(TINY, Place(iteration=2, eta=0.12)),
        ask(TINY, Place(iteration=2, eta=0.11), num_prompts=1),
        ask(TINY, SFT, Place(iteration=2, eta=0.13), num_prompts=2),
    ]:
        measured(bench, request)
    assert len(loads) == 1
    measured(bench, ask(TINY, Place(iteration=1, eta=0.11), Place(iteration=2, eta=0.14), Place(eta=0.15)))
    assert len(loads) == 3, "the places of an iteration are measured one after the other"


def test_the_same_place_twice(library):
    keys, heard = measured(Workbench(library, device=CPU), ask(TINY, Place(eta=0.21), SFT, Place(eta=0.21)))
    assert keys[0] == keys[2] != keys[1]
    assert heard.progressed[-1][:2] == (COMPLETIONS, COMPLETIONS)


@pytest.mark.parametrize("kind", ["full", "lora", "later"])
def test_models_without_a_run(kind, library, made):
    selection = getattr(made, kind)
    places = [SFT, Place(eta=0.5), single(1, len(selection.policies))]
    bench = Workbench(library, device=CPU)
    keys, _ = measured(bench, ask(selection, *places, num_prompts=2, samples_per_prompt=1, reward=("words",)))
    stored = points(library, selection)
    assert [stored[key]["kind"] for key in keys] == ["sft", "merge", "policy"]
    assert stored[keys[0]]["kl"] == 0.0
    assert min(stored[key]["kl"] for key in keys[1:]) > 0
    front = {point.key: point for point in front_document(library, selection).points}
    assert [front[key].place for key in keys] == places


def test_mistakes_are_said_before_anything_is_measured(library, made):
    bench = Workbench(library, device=CPU)
    before = len(points(library))
    with pytest.raises(RecipeError, match="3 weights for 2 policies"):
        measured(bench, ask(TINY, Place(eta=0.31), Place(weights=(0.2, 0.3, 0.5))))
    with pytest.raises(WorkspaceError, match="iteration 3"):
        measured(bench, ask(TINY, Place(eta=0.31), Place(iteration=3)))
    with pytest.raises(WorkspaceError, match="no run 'none'"):
        measured(bench, ask(Selection(run="none"), SFT))
    shutil.rmtree(library.root / "tiny" / "iteration-2" / "policy-2" / "checkpoint")
    with pytest.raises(WorkspaceError, match="not trained yet"):
        measured(bench, ask(TINY, Place(eta=0.31), Place(iteration=2)))
    assert len(points(library)) == before
