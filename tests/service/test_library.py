"""What a selection stands for: names, the bundled run's copy, open checkpoints, evaluations, recipes."""

import json
import os
import shutil
import threading

import pytest

from tests.service.selections import TINY
from tests.tiny import make_policies
from warp_core.errors import (
    CheckpointError,
    ConfigError,
    PromptError,
    RecipeError,
    RewardError,
    UserError,
    WorkspaceError,
)
from warp_core.service import library as library_module
from warp_core.service.library import Library
from warp_core.service.places import single
from warp_core.service.protocol import Place, Selection
from warp_core.weights import Recipe
from warp_core.workspace import bundled
from warp_core.workspace.assets import assets_root
from warp_core.workspace.results import Results
from warp_core.workspace.votes import VotesStore

DEMO = Selection(run="demo-run")


def stored(library, selection):
    store = Results(library.store_path(selection))
    try:
        return dict(store.items())
    finally:
        store.close()


def test_runs_of_the_workspace_the_bundled_one_and_extra_ones(library, made, tmp_path):
    root = library.root
    (root / "no-run").mkdir()
    (root / ".hidden").mkdir()
    shutil.copy(made.run / "run.json", root / ".hidden")
    (root / "away").symlink_to(made.run)
    extra = shutil.copytree(made.run, tmp_path / "elsewhere" / "a b")
    found = Library(extra_runs=[extra])
    assert found.run_names() == ["a b", "demo-run", "tiny"]
    assert found.run_folder("a b").path == extra
    assert found.run_folder("tiny").path == root / "tiny"
    assert Library(tmp_path / "nowhere").run_names() == ["demo-run"]


@pytest.mark.parametrize("name", ["../tiny", "tiny/..", "/etc", "..", ".", "a\0b", "con", "away", "none", "x" * 300])
def test_no_name_leads_out_of_the_workspace(library, made, name):
    (library.root / "away").symlink_to(made.run)
    with pytest.raises(WorkspaceError) as error:
        library.run_folder(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("selection", "word"),
    [
        (Selection(), "run"),
        (Selection(init="a"), "policy"),
        (Selection(policies=("a",)), "init"),
        (Selection(run="tiny", init="a", policies=("b",)), "not both"),
        (Selection(run="tiny", policies=("b",)), "not both"),
    ],
)
def test_a_selection_is_a_run_or_models(library, selection, word):
    for ask in (library.config, library.store_path, library.votes_path, library.prompts, library.ask):
        with pytest.raises(ConfigError, match=word):
            ask(selection)


class TestBundledRun:
    def test_is_copied_when_it_is_first_needed(self, tmp_path):
        library = Library()
        copy = tmp_path / "workspace" / "demo-run"
        assert "demo-run" in library.run_names()
        assert not copy.exists()
        assert library.run_folder("demo-run").path == copy
        assert library.is_bundled("demo-run")
        names = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
        shipped = assets_root() / "demo-run"
        assert names - {"manifest.json"} == {
            file.relative_to(shipped).as_posix() for file in shipped.rglob("*") if file.is_file()
        }
        assert library.config(DEMO).warp.policies == 3
        assert len(library.prompts(DEMO)) == 64
        assert len(stored(library, DEMO)) == 49

    def test_threads_that_need_it_at_once_get_one_copy(self, tmp_path):
        library, found = Library(), []
        threads = [threading.Thread(target=lambda: found.append(library.run_folder("demo-run"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert [path.name for path in (tmp_path / "workspace").iterdir()] == ["demo-run"]

    @pytest.fixture
    def shipped(self, tmp_path, monkeypatch, made):
        """An assets folder whose demo run is small and can be made newer."""
        assets = tmp_path / "assets"
        shutil.copytree(made.run, assets / "demo-run")
        monkeypatch.setattr(bundled, "assets_root", lambda: assets)

        def newer():
            about = json.loads((assets / "demo-run" / "run.json").read_text())
            about["started"] += 1
            (assets / "demo-run" / "run.json").write_text(json.dumps(about))
            (assets / "demo-run" / "new.txt").write_text("new")

        return newer

    def test_a_newer_one_replaces_an_untouched_copy(self, shipped):
        library = Library()
        before = library.run_folder("demo-run").path
        shipped()
        assert (library.run_folder("demo-run").path / "new.txt").is_file()
        assert before == library.run_folder("demo-run").path

    @pytest.mark.parametrize("what", ["point", "vote"])
    def test_what_a_user_added_is_never_replaced(self, shipped, what):
        library = Library()
        if what == "vote":
            with VotesStore(library.votes_path(DEMO)) as votes:
                votes.put({"score": 1})
        else:
            key, point = next(iter(stored(library, DEMO).items()))
            store = Results(library.store_path(DEMO))
            store.put_point(f"{key}x", point)
            store.close()
        shipped()
        assert not (library.run_folder("demo-run").path / "new.txt").exists()

    def test_a_run_that_somebody_trained_under_its_name_is_kept(self, shipped, made, tmp_path):
        shutil.copytree(made.run, tmp_path / "workspace" / "demo-run")
        shipped()
        assert not (Library().run_folder("demo-run").path / "new.txt").exists()
        assert not Library().is_bundled("demo-run")

    def test_where_the_workspace_cannot_be_written_it_is_in_the_cache(self, shipped, tmp_path):
        (tmp_path / "workspace").write_text("a file where the folder would be")
        assert Library().run_folder("demo-run").path == tmp_path / "cache" / "demo-run"

    def test_where_nothing_can_be_written_it_is_the_shipped_one(self, shipped, tmp_path):
        for name in ("workspace", "cache"):
            (tmp_path / name).write_text("a file where the folder would be")
        library = Library()
        assert library.run_folder("demo-run").path == tmp_path / "assets" / "demo-run"
        assert library.is_bundled("demo-run")

    def test_a_folder_of_its_name_that_is_no_run_is_left_alone(self, shipped, tmp_path):
        (tmp_path / "workspace" / "demo-run").mkdir(parents=True)
        (tmp_path / "workspace" / "demo-run" / "mine.txt").write_text("mine")
        assert Library().run_folder("demo-run").path == tmp_path / "cache" / "demo-run"
        assert [path.name for path in (tmp_path / "workspace" / "demo-run").iterdir()] == ["mine.txt"]

    def test_the_shipped_folder_given_by_path_is_not_written_to(self):
        library = Library(extra_runs=[assets_root() / "demo-run"])
        assert library.run_folder("demo-run").path == library.root / "demo-run"


class TestSources:
    def test_of_a_run(self, library, made):
        first, second = (library.sources(TINY, iteration) for iteration in (1, 2))
        assert first.sft.path == first.init.path == made.init
        assert [p.path.parent.name for p in first.policies] == ["policy-1", "policy-2"]
        assert first.towards is None
        assert second.towards.id == first.sft.id != second.init.id

    def test_of_models(self, library, made):
        full, lora, later = (library.sources(s, 1) for s in (made.full, made.lora, made.later))
        assert [p.kind for p in full.policies] == ["full"] * 3
        assert full.sft is full.init
        assert {p.base.id for p in lora.policies} == {full.init.id}
        assert later.init.kind == "adapter"
        assert later.sft.id == later.towards.id == full.init.id
        with pytest.raises(WorkspaceError, match="iteration 2"):
            library.sources(made.full, 2)

    def test_are_opened_once_while_their_files_stay_the_same(self, library, made, monkeypatch):
        first = library.sources(TINY, 1)
        assert library.opened(TINY, 1) is first
        assert library.opened(TINY, 2) is None
        monkeypatch.setattr(library_module, "sources_of", lambda *args: pytest.fail("opened again"))
        assert library.sources(TINY, 1) is first
        file = library.run_folder("tiny").checkpoint(1, 1) / "adapter_model.safetensors"
        os.utime(file, ns=(1, 1))
        assert library.opened(TINY, 1) is first, "it still holds the same"
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        assert library.opened(TINY, 1) is None

    def test_are_opened_again_when_a_file_changed(self, library, made, tmp_path):
        (policy,) = make_policies(made.init, tmp_path, num=1)
        selection = Selection(init=str(made.init), policies=(str(policy),))
        first = library.sources(selection, 1)
        shutil.copyfile(made.policies[1] / "model.safetensors", policy / "model.safetensors")
        assert library.sources(selection, 1).policies[0].id != first.policies[0].id

    def test_are_opened_again_when_a_configuration_changed(self, library, made, tmp_path):
        init = shutil.copytree(made.init, tmp_path / "init")
        selection = Selection(init=str(init), policies=(str(made.adapters[0]),), base=str(init))
        first = library.sources(selection, 1)
        config = json.loads((init / "config.json").read_text()) | {"rms_norm_eps": 0.5}
        (init / "config.json").write_text(json.dumps(config))
        assert library.sources(selection, 1).sft.id != first.sft.id

    def test_the_last_ones_stay_open(self, library, made, monkeypatch):
        monkeypatch.setattr(library_module, "_KEPT", 2)
        for iteration in (1, 2):
            library.sources(TINY, iteration)
        library.sources(made.full, 1)
        assert library.opened(TINY, 1) is None
        assert library.opened(TINY, 2) is not None
        assert library.opened(made.full, 1) is not None

    def test_a_model_that_moved_is_named_with_base(self, library, made, tmp_path):
        config = library.run_folder("tiny").config_file
        config.write_text(config.read_text().replace(str(made.init), "/gone/model"))
        with pytest.raises(CheckpointError, match="/gone/model"):
            library.sources(TINY, 1)
        moved = Selection(run="tiny", base=str(made.init))
        assert library.sources(moved, 1).sft.path == made.init

    @pytest.mark.parametrize("iteration", [3, 99])
    def test_an_iteration_that_is_not_there(self, library, iteration):
        with pytest.raises(WorkspaceError, match=f"iteration {iteration}"):
            library.sources(TINY, iteration)


class TestAsk:
    def test_asks_what_front_asks(self, library):
        """The fixture was measured by the command `front`."""
        asked = library.ask(TINY)
        for iteration in (1, 2):
            place = Place(iteration=iteration, eta=0.5)
            key = f"{library.recipe(TINY, place).id}:{asked.evaluation.id}"
            assert stored(library, TINY)[key]["eta"] == 0.5
        assert f"{library.sources(TINY, 1).sft.id}:{asked.evaluation.id}" in stored(library, TINY)
        assert asked.batch_size == 64

    def test_of_models_is_that_of_front_with_init(self, library, made):
        asked = library.ask(made.full).evaluation
        assert (asked.num_prompts, asked.samples_per_prompt, asked.max_new_tokens) == (32, 2, 24)
        assert (asked.temperature, asked.seed, asked.kl_estimator) == (0.9, 1234, "exact")
        assert asked.anchor == library.sources(made.full, 1).sft.id
        assert asked.reward_id == library.reward(["sentiment"]).id

    def test_says_otherwise_where_it_is_told_to(self, library):
        usual = library.ask(TINY).evaluation
        other = library.ask(TINY, num_prompts=2, samples_per_prompt=3, reward=["words"])
        assert len(other.prompts) == other.evaluation.num_prompts == 2
        assert other.evaluation.samples_per_prompt == 3
        assert other.reward.name == "words"
        assert usual.num_prompts == 3
        assert usual.id != other.evaluation.id

    def test_a_reward_is_loaded_once(self, library):
        assert library.reward(["words"]) is library.reward(("words",))
        assert library.reward(["words"]) is not library.reward(["words:2"])
        with pytest.raises(RewardError, match="sentimant"):
            library.reward(["sentimant"])

    def test_more_than_there_is(self, library):
        with pytest.raises(PromptError, match="4 prompts asked for"):
            library.ask(TINY, num_prompts=4)


class TestRecipe:
    def test_is_what_front_stores(self, library):
        points = [p for p in stored(library, TINY).values() if p["kind"] == "merge" and p["iteration"] == 2]
        assert {p["recipe"]["towards"] is None for p in points} == {False, True}
        for point in points:
            towards = "init" if point["recipe"]["towards"] is None else "sft"
            place = Place(iteration=2, method=point["method"], eta=point["eta"], towards=towards)
            assert library.recipe(TINY, place) == Recipe.from_json(point["recipe"])

    def test_iteration_1_has_one_start(self, library, made):
        for selection in (TINY, made.later):
            to_sft, to_init = (library.recipe(selection, Place(eta=0.3, towards=t)) for t in ("sft", "init"))
            assert to_sft == to_init
        assert to_sft.towards == library.sources(made.later, 1).sft.id

    def test_a_policy_alone(self, library):
        recipe = library.recipe(TINY, single(2, 2, iteration=2))
        assert recipe.weights == (0.0, 1.0)
        assert (recipe.method, recipe.eta, recipe.towards) == ("lerp", 1.0, None)

    def test_weights_that_a_link_rounded_are_the_same_model(self, library, made):
        even = library.recipe(made.full, Place())
        assert library.recipe(made.full, Place(weights=(0.3333, 0.3333, 0.3333))) == even
        assert library.recipe(made.full, Place(weights=(0.33333334, 0.33333333, 0.33333333))) == even
        given = library.recipe(made.full, Place(weights=(0.2, 0.3, 0.5)))
        assert given.weights == (0.2, 0.3, 0.5)
        rounded = library.recipe(made.full, Place(weights=(0.1429, 0.2857, 0.5715)))
        assert sum(rounded.weights) == pytest.approx(1, abs=1e-12)

    @pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.2, 0.2), (0.5, 0.5, 0.5)])
    def test_weights_that_make_no_sense(self, library, made, weights):
        with pytest.raises(RecipeError, match="weights"):
            library.recipe(made.full, Place(weights=weights))


def test_votes_of_models_have_a_file_of_their_own(library, made):
    run, full, lora = (library.votes_path(s) for s in (TINY, made.full, made.lora))
    assert run == library.root / "tiny" / "votes.sqlite"
    assert full != lora
    assert full.parent == lora.parent == library.root / "votes"


@pytest.mark.parametrize(
    "selection",
    [
        Selection(run="x"),
        Selection(init="/no", policies=("/no",)),
        Selection(init="a b", policies=("c",)),
        Selection(init="~nobody/x", policies=("c" * 400,)),
    ],
)
def test_what_is_not_there_is_the_users_mistake_in_one_line(library, selection):
    with pytest.raises(UserError) as error:
        library.sources(selection, 1)
    assert "\n" not in str(error.value)
