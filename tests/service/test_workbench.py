"""What is in memory: made once, shared by all sessions, let go of for another selection, and flat over many moves."""

import gc
import threading
import time
import weakref

import psutil
import pytest

from tests.rounding import rounded
from tests.service.selections import TINY
from tests.service.watching import Watched
from tests.tiny import make_adapter, make_model
from tests.training.runs import CPU
from warp_core.errors import CheckpointError, WorkspaceError
from warp_core.evaluation.points import Point
from warp_core.service import workbench as workbench_module
from warp_core.service.jobs import JobQueue
from warp_core.service.protocol import (
    SFT,
    JobState,
    MeasureRequest,
    PaneRequest,
    Place,
    PrepareRequest,
    PreviewRequest,
    Selection,
)
from warp_core.service.workbench import Workbench
from warp_core.weights import ResidentMerge
from warp_core.workspace.results import Results


def preview_of(selection, *places, session="s", tokens=4, score=False, prompt="the film"):
    panes = tuple(PaneRequest(id=str(number), place=place) for number, place in enumerate(places))
    return PreviewRequest(
        session=session, selection=selection, prompt=prompt, panes=panes, max_new_tokens=tokens, score=score
    )


def texts(bench, *request, **settings):
    heard = Watched()
    bench.preview(preview_of(*request, **settings), heard)
    return heard.texts


@pytest.fixture
def bench(library):
    return Workbench(library, device=CPU)


@pytest.fixture
def elsewhere(tmp_path):
    """Adapters over another base."""
    base = make_model("llama", tmp_path / "elsewhere", seed=9)
    adapters = [make_adapter(base, tmp_path / f"elsewhere{m}", seed=m) for m in range(2)]
    return Selection(init=str(base), policies=tuple(map(str, adapters)))


def loads_counted(monkeypatch):
    loads = []
    original = workbench_module.load_policy
    monkeypatch.setattr(
        workbench_module, "load_policy", lambda *args, **kw: loads.append(args) or original(*args, **kw)
    )
    return loads


def test_prepare_makes_the_first_preview_quick(bench, monkeypatch):
    heard = Watched()
    assert bench.prepare(PrepareRequest(session="s", selection=TINY), heard) is None
    assert heard.said[-1] == "ready"
    assert {"opening the checkpoints", "loading the base model", "loading the reward"} <= set(heard.said)
    # Two policies of each of two iterations, and the init of the second.
    assert bench.loaded() == ("tiny: 5 adapters over one base",)

    def never(*args, **kwargs):
        raise AssertionError("something is read again")

    for name in ("load_policy", "compute_geometry"):
        monkeypatch.setattr(workbench_module, name, never)
    monkeypatch.setattr("warp_core.policy.bank.read_adapter", never)
    monkeypatch.setattr("warp_core.service.library.load_reward", never)
    heard = Watched()
    bench.preview(preview_of(TINY, SFT, Place(eta=0.5), Place(iteration=2, eta=0.5), score=True), heard)
    assert heard.said == []
    assert heard.marks[-1] == "scored"


def test_prepare_full_checkpoints(bench, made):
    bench.prepare(PrepareRequest(session="s", selection=made.full), Watched())
    (note,) = bench.loaded()
    assert note.endswith("with 3 policies: 1 live model")


def test_what_cannot_be_prepared(bench, made, monkeypatch):
    with pytest.raises(WorkspaceError, match="no run 'none'"):
        bench.prepare(PrepareRequest(session="s", selection=Selection(run="none")), Watched())
    nothing = Selection(init="./nowhere", policies=("./nothing",))
    with pytest.raises(CheckpointError, match=r"no model folder at '\./nowhere'"):
        bench.prepare(PrepareRequest(session="s", selection=nothing), Watched())
    assert bench.loaded() == ()


def test_fetching_is_said_in_words(bench, made, monkeypatch):
    """The embedded model is fetched on first use."""

    def resolve(name, *, say):
        say("fetching SmolLM2-135M-Instruct (93 MB), once")
        return made.init

    monkeypatch.setattr(workbench_module, "resolve_model", resolve)
    heard = Watched()
    bench.preview(preview_of(made.lora, SFT), heard)
    assert heard.said[:3] == [
        f"looking for {made.init}",
        "fetching SmolLM2-135M-Instruct (93 MB), once",
        "opening the checkpoints",
    ]


def test_two_sessions_with_other_models_alternate(bench, made, elsewhere, monkeypatch):
    loads = loads_counted(monkeypatch)
    place = Place(eta=0.7)
    selections = [made.lora, elsewhere, made.full, made.later]
    alone = [texts(bench, selection, SFT, place, tokens=40) for selection in selections]
    assert len({str(found) for found in alone}) == 4
    for _ in range(2):
        assert [texts(bench, selection, SFT, place, tokens=40) for selection in selections] == alone
    # The adapters of `lora` and of `later` are over one base and share it.
    count = len(loads)
    texts(bench, made.later, SFT, place)
    texts(bench, made.lora, SFT, place)
    assert len(loads) == count


def test_another_selection_frees_the_one_before(bench, made, elsewhere):
    texts(bench, made.lora, SFT)
    first = weakref.ref(bench._held.bank.policy.model)
    bench.measure(
        MeasureRequest(session="s", selection=made.lora, places=(Place(eta=0.5),), num_prompts=1, reward=("words",)),
        Watched(),
    )
    assert [note.rpartition(": ")[2] for note in bench.loaded()] == [
        "3 adapters over one base",
        "a model for measuring",
    ]
    second = weakref.ref(bench._held.sweeps._latest[1]._bank.policy.model)
    texts(bench, elsewhere, SFT)
    gc.collect()
    assert first() is second() is None
    assert bench.loaded() == (f"{elsewhere.init} with 2 policies: 2 adapters over one base",)
    third = weakref.ref(bench._held.bank.policy.model)
    texts(bench, made.full, SFT, Place(eta=0.5))
    gc.collect()
    assert third() is None


def test_panes_and_measurements_hold_the_checkpoints_once(bench, made, monkeypatch):
    made_anew = []
    original = ResidentMerge.__init__
    monkeypatch.setattr(
        ResidentMerge, "__init__", lambda self, *args, **kw: made_anew.append(self) or original(self, *args, **kw)
    )
    request = MeasureRequest(
        session="s", selection=made.full, places=(Place(eta=0.5),), num_prompts=1, reward=("words",)
    )
    bench.measure(request, Watched())
    texts(bench, made.full, SFT, Place(eta=0.3), Place(eta=0.6))
    texts(bench, made.full, Place(eta=0.4), Place(eta=0.9))
    assert len(made_anew) == 1
    other = Workbench(bench._library, device=CPU)
    again = texts(other, made.full, Place(eta=0.4), Place(eta=0.9), tokens=30)
    assert again == texts(bench, made.full, Place(eta=0.4), Place(eta=0.9), tokens=30)


def test_slerp_of_weights_where_rows_cannot_be_scaled(library, tmp_path):
    base = make_model("mixtral", tmp_path / "experts")
    adapters = [make_adapter(base, tmp_path / f"expert{m}", seed=m) for m in range(2)]
    selection = Selection(init=str(base), policies=tuple(map(str, adapters)))
    bench = Workbench(library, device=CPU)
    scaled = Place(method="slerp-weights", eta=0.8)
    found = texts(bench, selection, SFT, scaled)
    assert "live model" in bench.loaded()[-1]
    assert texts(bench, selection, SFT, Place(eta=0.8))[0] == found[0]
    assert bench.loaded()[-1].endswith("2 adapters over one base")
    assert texts(bench, selection, SFT, scaled) == found


def test_a_preview_goes_first_and_the_measurement_on_afterwards(bench, library):
    """With the real queue: both jobs of one lane, the preview in a checkpoint of the measurement."""
    queue = JobQueue()
    known = Results(library.store_path(TINY)).list_points()
    library.store_path(TINY).unlink()
    places = (SFT, Place(eta=0.5), Place(iteration=2, eta=0.5), Place(iteration=2, eta=1.0))
    measure = MeasureRequest(session="s", selection=TINY, places=places)
    try:
        slow = queue.submit(
            lambda context: bench.measure(measure, context),
            kind="measure",
            session="s",
            title="Measure",
            lane="device",
            priority=2,
        )
        quick = [
            queue.submit(
                lambda context, number=number: bench.preview(
                    preview_of(TINY, SFT, Place(eta=number / 10), session=f"v{number}"), context
                ),
                kind="preview",
                session=f"v{number}",
                title="Sample",
                lane="device",
                priority=0,
                replaces=True,
            )
            for number in range(4)
        ]
        wait_for(queue, [slow, *quick])
    finally:
        queue.close()
    jobs = [queue.job(one.id) for one in (slow, *quick)]
    assert [job.state for job in jobs] == [JobState.DONE] * 5, [job.error for job in jobs]
    assert all(job.ended_at <= jobs[0].ended_at for job in jobs[1:])
    assert {"started", "merged", "first_token", "sampled"} <= jobs[1].timings_s.keys()
    store = Results(library.store_path(TINY))
    found = store.list_points()
    store.close()
    assert len(found) == 4
    before = {Point.from_json(point).key: point for point in known}
    assert all(point == rounded(before[Point.from_json(point).key]) for point in found)


def wait_for(queue, jobs, *, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not all(queue.job(job.id).state.is_final for job in jobs):
        assert time.monotonic() < end, [queue.job(job.id) for job in jobs]
        time.sleep(0.01)


def test_memory_is_flat_over_many_moves(bench):
    def moves(count):
        for number in range(count):
            place = Place(
                iteration=1 + number % 2, eta=(number % 40) / 20, weights=((number % 7) / 7, 1 - (number % 7) / 7)
            )
            texts(bench, TINY, SFT, place, tokens=2, score=number % 10 == 0)

    def tensors():
        gc.collect()
        return sum("Tensor" in type(one).__name__ for one in gc.get_objects())

    moves(40)
    before, resident = tensors(), psutil.Process().memory_info().rss
    moves(160)
    assert tensors() <= before + 5
    assert psutil.Process().memory_info().rss - resident < 16e6
    assert threading.active_count() < 20
