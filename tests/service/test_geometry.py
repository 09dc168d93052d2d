"""The geometry with its SFT column: against weights recomputed from the files; kept, stale, read-only, cancelled."""

import json
import shutil

import numpy as np
import pytest

from tests.service.selections import TINY, Heard
from tests.tiny import load_model
from warp_core.errors import CheckpointError, RecipeError, WorkspaceError
from warp_core.service import geometry as geometry_module
from warp_core.service.documents import GeometryDocument
from warp_core.service.geometry import coefficients_at, compute, known_geometry, stored_geometry
from warp_core.service.jobs import Cancelled
from warp_core.service.library import Library
from warp_core.service.places import single
from warp_core.service.protocol import GeometryRequest, Place, Selection
from warp_core.weights import coefficients, compute_geometry, layer_of
from warp_core.workspace.assets import assets_root
from warp_core.workspace.publish import write_text_atomic

DEMO = Selection(run="demo-run")


def asked(selection=TINY, iteration=1, **more):
    return GeometryRequest(session="s", selection=selection, iteration=iteration, **more)


def never(*args, **kwargs):
    pytest.fail("computed again")


def vectors(checkpoint):
    """Float64 weights of a checkpoint by layer, with plain transformers and PEFT."""
    base = checkpoint.base.path if checkpoint.base else None
    model = load_model(checkpoint.path, base=base)
    if base is not None:
        model = model.merge_and_unload()
    layers = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not model.config.tie_word_embeddings:
            layers.setdefault(layer_of(name), []).append(tensor.double().numpy().ravel())
    return {layer: np.concatenate(parts) for layer, parts in layers.items()}


def gram_by_hand(sources, layers, *, with_sft):
    """Inner products of theta_m - theta_init, and of theta_sft - theta_init as the last column."""
    init = vectors(sources.init)
    others = [vectors(one) for one in (*sources.policies, *([sources.sft] if with_sft else []))]
    deltas = [np.stack([other[layer] - init[layer] for other in others]) for layer in layers]
    return np.stack([delta @ delta.T for delta in deltas])


class TestNumbers:
    @pytest.mark.parametrize("which", ["run", "full", "lora", "later"])
    def test_are_those_of_the_weights(self, library, made, which):
        selection = TINY if which == "run" else getattr(made, which)
        iteration = 2 if which == "run" else 1
        found = GeometryDocument.model_validate(compute(library, asked(selection, iteration), Heard()))
        sources = library.sources(selection, iteration)
        assert found.has_sft_column == (which in ("run", "later"))
        want = gram_by_hand(sources, found.layers, with_sft=found.has_sft_column)
        assert np.asarray(found.gram_LKK) == pytest.approx(want, rel=1e-4, abs=1e-6)
        num = len(sources.policies)
        assert np.asarray(found.norms_LM) == pytest.approx(np.sqrt(np.einsum("lmm->lm", want))[:, :num], rel=1e-4)
        cosines = np.asarray(found.cosines_LMM)
        assert cosines.shape == (len(found.layers), num, num)
        assert np.cos(np.radians(found.angles_deg_LMM)) == pytest.approx(cosines, abs=1e-9)
        assert np.asarray(found.full_cosines_LMM).min() > 0.5
        assert sum(found.num_params) <= sources.sft.num_params

    def test_the_policies_part_is_the_one_that_merges_use(self, library):
        """Turned from the SFT policy to the init, and computed from the init: the same to rounding."""
        compute(library, asked(iteration=2), Heard())
        found, sources = stored_geometry(library, TINY, 2), library.sources(TINY, 2)
        own = compute_geometry(sources.init, sources.policies)
        assert [layer.name for layer in found.layers] == [layer.name for layer in own.layers]
        assert found.gram_LNN[:, :-1, :-1] == pytest.approx(own.gram_LNN, rel=1e-9, abs=1e-9)

    def test_names(self, library, made):
        run = GeometryDocument.model_validate(compute(library, asked(), Heard()))
        assert run.policies == ("policy 1", "policy 2")
        full = GeometryDocument.model_validate(compute(library, asked(made.full), Heard()))
        assert full.policies == ("policy0", "policy1", "policy2")

    @pytest.mark.parametrize("granularity", ["tensor", "model"])
    def test_other_granularities_are_shown_and_not_kept(self, library, granularity):
        found = compute(library, asked(granularity=granularity), Heard())
        assert found["granularity"] == granularity
        assert (len(found["layers"]) == 1) == (granularity == "model")
        assert known_geometry(library, TINY, 1) is None

    def test_a_run_of_another_granularity_has_its_own(self, library):
        config = library.run_folder("tiny").config_file
        config.write_text(config.read_text().replace('granularity = "layer"', 'granularity = "model"'))
        compute(library, asked(granularity="model"), Heard())
        assert known_geometry(library, TINY, 1).layers == ("model",)


class TestCoefficients:
    @pytest.mark.parametrize("place", [Place(eta=0.3), Place(method="lerp", weights=(0.2, 0.8), eta=1.5), single(2, 2)])
    @pytest.mark.parametrize("iteration", [1, 2])
    @pytest.mark.parametrize("towards", ["sft", "init"])
    def test_are_those_of_the_merge(self, library, place, iteration, towards):
        compute(library, asked(iteration=iteration), Heard())
        place = place.model_copy(update={"iteration": iteration, "towards": towards})
        found = coefficients_at(stored_geometry(library, TINY, iteration), place, 2)
        sources = library.sources(TINY, iteration)
        want = coefficients(library.recipe(TINY, place), compute_geometry(sources.init, sources.policies))
        assert found[:, :2] == pytest.approx(want.coef_LM, abs=1e-9)
        assert found.shape[1] == (3 if iteration == 2 else 2)
        if iteration == 2:
            assert found[:, 2] == pytest.approx(want.towards_L, abs=1e-12)

    def test_of_the_sft_policy(self, library):
        for iteration in (1, 2):
            compute(library, asked(iteration=iteration), Heard())
            found = coefficients_at(stored_geometry(library, TINY, iteration), Place(iteration=iteration, eta=0.0), 2)
            assert found.tolist() == [[0.0, 0.0] if iteration == 1 else [0.0, 0.0, 1.0]] * len(found)

    def test_of_the_wrong_number_of_weights(self, library):
        compute(library, asked(), Heard())
        with pytest.raises(RecipeError, match="weights"):
            coefficients_at(stored_geometry(library, TINY, 1), Place(weights=(0.2, 0.3, 0.5)), 2)


class TestKept:
    def test_is_computed_once_and_lies_in_the_run(self, library, monkeypatch):
        assert known_geometry(library, TINY, 2) is None
        heard = Heard()
        first = compute(library, asked(iteration=2), heard)
        assert heard.shares == sorted(heard.shares)
        assert heard.shares[-1] == 1.0
        assert (library.run_folder("tiny").iteration(2) / "geometry.json").is_file()
        monkeypatch.setattr(geometry_module, "compute_geometry", never)
        assert compute(library, asked(iteration=2), Heard()) == first
        assert known_geometry(library, TINY, 2).model_dump(mode="json") == first

    def test_needs_no_model_and_moves_with_the_run(self, library, made, tmp_path):
        first = compute(library, asked(iteration=2), Heard())
        moved = shutil.move(library.run_folder("tiny").path, tmp_path / "moved")
        config = tmp_path / "moved" / "config.toml"
        config.write_text(config.read_text().replace(str(made.init), "/gone/model"))
        found = known_geometry(Library(extra_runs=[moved]), Selection(run="moved"), 2)
        assert found.model_dump(mode="json") == first

    @pytest.mark.parametrize("what", ["text", "format", "foreign-sft", "other-policies", "nan"])
    def test_a_stale_or_damaged_file_is_not_used(self, library, what):
        compute(library, asked(), Heard())
        file = library.run_folder("tiny").iteration(1) / "geometry.json"
        data = json.loads(file.read_text())
        if what == "format":
            data["format"] = 99
        elif what == "foreign-sft":
            data["sft"] = "0" * 64
        elif what == "other-policies":
            data["geometry"]["policies"][0] = "0" * 64
        elif what == "nan":
            data["geometry"]["gram_LNN"][0][0][0] = float("nan")
        file.write_text("{" if what == "text" else json.dumps(data))
        assert known_geometry(library, TINY, 1) is None
        again = compute(library, asked(), Heard())
        assert known_geometry(library, TINY, 1).model_dump(mode="json") == again

    def test_where_the_run_cannot_be_written_it_is_in_the_cache(self, library, monkeypatch):
        run = library.run_folder("tiny").path

        def refused(path, text):
            if path.is_relative_to(run):
                raise WorkspaceError(f"{path}: read-only")
            write_text_atomic(path, text)

        monkeypatch.setattr(geometry_module, "write_text_atomic", refused)
        compute(library, asked(), Heard())
        assert not (run / "iteration-1" / "geometry.json").exists()
        assert known_geometry(library, TINY, 1) is not None

    def test_of_models_it_is_in_the_cache_under_their_content(self, library, made):
        first = compute(library, asked(made.lora), Heard())
        assert known_geometry(library, made.lora, 1).model_dump(mode="json") == first
        assert known_geometry(library, made.full, 1) is None
        other = Library()
        assert known_geometry(other, made.lora, 1) is None  # not opened yet: what they hold is not known
        other.sources(made.lora, 1)
        assert known_geometry(other, made.lora, 1) is not None

    def test_the_bundled_run_ships_with_it(self):
        library = Library()
        for iteration, columns in ((1, 3), (2, 4)):
            found = known_geometry(library, DEMO, iteration)
            assert (len(found.layers), len(found.gram_LKK[0])) == (30, columns)
            assert found.has_sft_column == (iteration == 2)
            assert (assets_root() / "demo-run" / f"iteration-{iteration}" / "geometry.json").stat().st_size < 300_000


class TestMistakes:
    def test_an_iteration_that_is_not_there(self, library):
        assert known_geometry(library, TINY, 7) is None
        with pytest.raises(WorkspaceError, match="iteration 7"):
            compute(library, asked(iteration=7), Heard())

    def test_models_that_do_not_belong_together(self, library, made, tmp_path):
        from tests.tiny import make_model

        other = make_model("llama", tmp_path / "other", hidden_size=16)
        with pytest.raises(CheckpointError, match="other"):
            compute(library, asked(Selection(init=str(made.init), policies=(str(other),))), Heard())

    def test_cancelled_between_tensors(self, library, made):
        with pytest.raises(Cancelled):
            compute(library, asked(made.full), Heard(patience=3))
        assert known_geometry(library, made.full, 1) is None
