"""What is exported is what was seen: read back with transformers and PEFT, and compared by the job itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.service.selections import TINY, Heard
from tests.tiny import load_model, logits_of, make_model, make_policies
from warp_core.errors import CheckpointError, RecipeError, UserError, WorkspaceError
from warp_core.service import exports as exports_module
from warp_core.service.documents import ExportReport
from warp_core.service.exports import export
from warp_core.service.jobs import Cancelled
from warp_core.service.places import single
from warp_core.service.protocol import SFT, ExportRequest, Place, Selection
from warp_core.weights import ResidentMerge, coefficients, compute_geometry, open_checkpoint

LATER = Place(iteration=2, eta=0.3)


def asked(selection=TINY, place=LATER, name="out", **more):
    return ExportRequest(session="s", selection=selection, place=place, name=name, **more)


def exported(library, *args, heard=None, **more):
    return ExportReport.model_validate(export(library, asked(*args, **more), heard or Heard()))


def in_memory(library, selection, place):
    """The model as a preview makes it."""
    sources, recipe = library.sources(selection, place.iteration), library.recipe(selection, place)
    model = load_model(sources.sft.path)
    towards = sources.towards if recipe.towards else None
    resident = ResidentMerge(model, init=sources.init, policies=sources.policies, towards=towards)
    geometry = compute_geometry(sources.init, sources.policies, granularity=recipe.granularity)
    resident.move(coefficients(recipe, geometry))
    return model


class TestWholeModels:
    @pytest.mark.parametrize("place", [LATER, Place(iteration=2, eta=0.7, towards="init"), single(2, 2), SFT])
    def test_of_a_run(self, library, place):
        report = exported(library, place=place)
        assert report.verified is True
        assert report.max_difference == 0.0
        assert torch.equal(logits_of(load_model(Path(report.out))), logits_of(in_memory(library, TINY, place)))
        assert Path(report.out) == library.root / "exports" / "out"
        assert {"config.json", "model.safetensors", "tokenizer.json", "warp_recipe.json"} <= set(report.files)
        assert report.recipe == library.recipe(TINY, place).to_json()
        assert report.size_bytes == sum((Path(report.out) / file).stat().st_size for file in report.files)

    def test_weights_that_previews_show_with_more_digits_are_said_to_be_rounded(self, library, tmp_path):
        half = make_model("llama", tmp_path / "half", dtype=torch.bfloat16)
        models = Selection(init=str(half), policies=(str(make_policies(half, tmp_path, num=1)[0]),))
        place = Place(eta=0.5)
        assert exported(library, models, place, name="a").rounded == ("float32", "bfloat16")
        assert exported(library, models, place, name="b", dtype="float32").rounded is None
        assert exported(library, place=LATER, name="c", dtype="float16").rounded == ("float32", "float16")
        assert exported(library, place=LATER, name="d").rounded is None
        assert exported(library, place=LATER, name="e", form="adapter").rounded is None

    @pytest.mark.parametrize("which", ["full", "lora", "later"])
    @pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
    def test_of_models_in_any_dtype(self, library, made, which, dtype):
        place = Place(weights=(0.5, 0.5) if which == "later" else (0.2, 0.3, 0.5), eta=0.6)
        report = exported(library, getattr(made, which), place, dtype=dtype)
        assert report.verified is True
        assert report.max_difference == 0.0
        dtypes = {str(tensor.dtype) for tensor in load_file(Path(report.out) / "model.safetensors").values()}
        assert dtypes == {f"torch.{dtype or 'float32'}"}

    def test_in_shards(self, library):
        report = exported(library, max_shard_size="20KB")
        assert report.verified is True
        assert sum(file.endswith(".safetensors") for file in report.files) > 1
        assert "model.safetensors.index.json" in report.files

    def test_what_both_say_is_reported(self, library):
        report = exported(library)
        assert [prompt for prompt, _, _ in report.completions] == library.prompts(TINY)[:3]
        assert all(ours == theirs for _, ours, theirs in report.completions)
        assert any(ours for _, ours, _ in report.completions)

    def test_without_the_look_back(self, library, monkeypatch):
        monkeypatch.setattr(exports_module, "load_policy", lambda *args, **more: pytest.fail("loaded"))
        heard = Heard()
        report = exported(library, verify=False, heard=heard)
        assert (report.verified, report.max_difference, report.completions) == (None, None, ())
        assert heard.shares == sorted(heard.shares)
        assert heard.shares[-1] == 1.0


class TestAdapters:
    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_open_with_peft(self, library, made, dtype):
        report = exported(library, form="adapter", dtype=dtype)
        assert report.verified is True
        assert (report.max_difference > 0) == (dtype == "bfloat16")
        assert report.max_difference < 1e-3
        model = load_model(Path(report.out), base=made.init)
        atol = 1e-5 if dtype is None else 0.05
        assert torch.allclose(logits_of(model), logits_of(in_memory(library, TINY, LATER)), atol=atol)
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(report.files)

    @pytest.mark.parametrize("place", [SFT, single(1, 2), Place(iteration=2, eta=0.0, towards="init")])
    def test_at_the_ends(self, library, place):
        report = exported(library, place=place, form="adapter")
        assert report.verified is True
        assert report.max_difference < 1e-6

    def test_name_their_base_so_that_it_is_found(self, library, made):
        for name, selection, place in (("run", TINY, LATER), ("models", made.lora, Place(eta=0.5))):
            out = Path(exported(library, selection, place, name, form="adapter").out)
            written = json.loads((out / "adapter_config.json").read_text())
            assert written["base_model_name_or_path"] == str(made.init)
            assert open_checkpoint(out).base.id == library.sources(selection, 1).sft.id

    def test_of_full_checkpoints_there_is_none(self, library, made):
        with pytest.raises(CheckpointError, match="write a full model"):
            export(library, asked(made.full, Place(), form="adapter"), Heard())
        assert not (library.root / "exports" / "out").exists()


class TestLookBack:
    def spoil(self, monkeypatch, file, change):
        """Change what was written before it is read back."""
        write = exports_module.merge_to_folder

        def spoiling(*args, **more):
            report = write(*args, **more)
            tensors = load_file(report.out / file)
            change(tensors)
            save_file(tensors, report.out / file, metadata={"format": "pt"})
            return report

        monkeypatch.setattr(exports_module, "merge_to_folder", spoiling)

    def test_one_number_that_differs_is_found(self, library, monkeypatch):
        def change(tensors):
            tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.25

        self.spoil(monkeypatch, "model.safetensors", change)
        report = exported(library)
        assert report.verified is False
        assert report.max_difference == pytest.approx(0.25)

    def test_a_module_of_an_adapter_that_is_lost_is_found(self, library, monkeypatch):
        def change(tensors):
            for name in tensors:
                if "layers.0.self_attn.q_proj.lora_B" in name:
                    tensors[name].zero_()

        self.spoil(monkeypatch, "adapter_model.safetensors", change)
        for dtype in (None, "bfloat16"):
            assert exported(library, name=f"out-{dtype}", form="adapter", dtype=dtype).verified is False

    def test_other_parameters_altogether(self):
        one = {"a": torch.zeros(2)}
        assert exports_module._max_difference(one, {"b": torch.zeros(2)}) is None
        assert exports_module._max_difference(one, {"a": torch.zeros(3)}) is None
        assert exports_module._max_difference(one, {"a": torch.tensor([0.0, -2.0])}) == 2.0


class TestMistakes:
    @pytest.mark.parametrize("name", ["../x", "a/b", "..", ".x", "con", "x y", "a\\b"])
    def test_no_name_leads_out_of_the_exports(self, library, name):
        with pytest.raises(WorkspaceError, match="name"):
            export(library, asked(name=name), Heard())
        assert not (library.root / "exports").exists()

    def test_a_name_that_is_taken(self, library):
        exported(library, verify=False)
        with pytest.raises(WorkspaceError, match="choose another name"):
            export(library, asked(), Heard())

    def test_a_link_that_leads_elsewhere(self, library, tmp_path):
        (library.root / "exports").mkdir()
        (tmp_path / "target").mkdir()
        (library.root / "exports" / "out").symlink_to(tmp_path / "target")
        with pytest.raises(WorkspaceError):
            export(library, asked(), Heard())
        assert list((tmp_path / "target").iterdir()) == []

    @pytest.mark.parametrize("size", ["", "5 apples", "-1GB", "0"])
    def test_a_size_that_is_none(self, library, size):
        with pytest.raises(RecipeError, match="size"):
            export(library, asked(max_shard_size=size), Heard())

    def test_an_iteration_that_is_not_there_and_weights_that_do_not_fit(self, library):
        for place in (Place(iteration=3), Place(weights=(0.2, 0.3, 0.5))):
            with pytest.raises(UserError):
                export(library, asked(place=place), Heard())

    @pytest.mark.parametrize("patience", [0, 5, 30])
    def test_cancelled_nothing_is_left(self, library, patience):
        with pytest.raises(Cancelled):
            export(library, asked(), Heard(patience=patience))
        assert not (library.root / "exports" / "out").exists()
        assert not list(library.root.glob("exports/.*"))

    @pytest.mark.parametrize("from_the_end", [1, 2])
    def test_cancelled_while_it_is_read_back_nothing_is_left(self, library, from_the_end):
        for name in ("first", "second"):  # the second has the angles of the first
            whole = Heard()
            export(library, asked(name=name), whole)
        with pytest.raises(Cancelled):
            export(library, asked(), Heard(patience=10**9 - whole.patience - from_the_end))
        assert sorted(path.name for path in (library.root / "exports").iterdir()) == ["first", "second"]

    def test_an_export_is_no_run(self, library):
        exported(library, verify=False)
        assert "exports" not in library.run_names()
        with pytest.raises(WorkspaceError):
            library.run_folder("exports")
        report = exported(library, Selection(run="tiny"), SFT, "again", verify=False)
        assert Path(report.out).name == "again"
