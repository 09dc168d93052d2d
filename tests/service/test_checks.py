"""Every problem of a selection in words, what its checkpoints are, and what exploring them takes."""

import json
import shutil

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.service.selections import TINY, Heard
from tests.tiny import make_adapter, make_model, make_policies
from warp_core.errors import ConfigError, WorkspaceError
from warp_core.service.checks import check, needed_bytes
from warp_core.service.documents import CheckReport
from warp_core.service.jobs import Cancelled
from warp_core.service.protocol import CheckRequest, Selection


def checked(library, selection, heard=None):
    return CheckReport.model_validate(check(library, CheckRequest(session="s", selection=selection), heard or Heard()))


def models(init, *policies, base=None):
    return Selection(init=str(init), policies=tuple(map(str, policies)), base=base and str(base))


class TestSound:
    def test_a_run(self, library, made):
        heard = Heard()
        report = checked(library, TINY, heard)
        assert (report.ok, report.problems) == (True, ())
        assert [(model.role, model.kind) for model in report.models] == [
            ("sft", "full"),
            ("policy", "adapter"),
            ("policy", "adapter"),
            ("init", "adapter"),
            ("policy", "adapter"),
            ("policy", "adapter"),
        ]
        assert [model.name for model in report.models[1:]] == [
            "policy 1 of iteration 1",
            "policy 2 of iteration 1",
            "init of iteration 2",
            "policy 1 of iteration 2",
            "policy 2 of iteration 2",
        ]
        sft = report.models[0]
        stored = load_file(made.init / "model.safetensors")
        assert sft.num_params == sum(tensor.numel() for tensor in stored.values())
        assert (sft.size_bytes, sft.dtype) == (4 * sft.num_params, "float32")
        assert all(model.num_params < sft.num_params / 2 for model in report.models[1:])
        assert "reading policy 1 of iteration 2" in heard.said
        assert report.device in ("cpu", "cuda:0")
        assert (
            0 < report.needed_bytes < report.available_bytes <= psutil.virtual_memory().total
            or torch.cuda.is_available()
        )

    def test_models(self, library, made):
        for selection, roles in (
            (made.full, ["init", "policy", "policy", "policy"]),
            (made.lora, ["init", "policy", "policy", "policy"]),
            (made.later, ["sft", "init", "policy", "policy"]),
        ):
            report = checked(library, selection)
            assert (report.ok, report.problems) == (True, ())
            assert [model.role for model in report.models] == roles
            assert len({model.id for model in report.models}) == 4

    def test_a_run_that_is_not_finished_has_its_first_iterations(self, library):
        shutil.rmtree(library.run_folder("tiny").checkpoint(2, 2))
        report = checked(library, TINY)
        assert report.ok
        assert len(report.models) == 3


class TestMemory:
    def test_of_full_checkpoints(self, library, made):
        """Init and three policies are held twice, for previews and for measuring; three panes and one more move."""
        sources = library.sources(made.full, 1)
        size = 4 * sources.sft.num_params
        assert needed_bytes(sources, torch.float32) == 2 * (1 + 3) * size + 4 * size
        assert needed_bytes(sources, torch.bfloat16) == 2 * (1 + 3) * size + 4 * size // 2

    def test_of_adapters(self, library, made):
        """A base that is all previews, a base and a model that are measured; the factors are small."""
        sources = library.sources(made.lora, 1)
        size = 4 * sources.sft.num_params
        tensors = [load_file(folder / "adapter_model.safetensors") for folder in made.adapters]
        factors = sum(tensor.numel() for one in tensors for tensor in one.values())
        assert needed_bytes(sources, torch.float32) == 3 * size + 2 * 4 * factors

    def test_a_run_takes_what_its_largest_iteration_takes(self, library):
        needs = [needed_bytes(library.sources(TINY, iteration), torch.float32) for iteration in (1, 2)]
        assert checked(library, TINY).needed_bytes == max(needs) > min(needs)


class TestProblems:
    def test_nan_is_named_by_tensor_and_folder(self, library, made, tmp_path):
        good, bad = make_policies(made.init, tmp_path, num=2)
        tensors = load_file(bad / "model.safetensors")
        tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
        report = checked(library, models(made.init, good, bad))
        (problem,) = report.problems
        assert not report.ok
        assert str(bad) in problem
        assert "'model.norm.weight' holds NaN" in problem

    def test_all_folders_are_looked_at_where_one_cannot_be_opened(self, library, made, tmp_path):
        first, second, third = make_policies(made.init, tmp_path, num=3)
        (first / "config.json").unlink()
        (second / "model.safetensors").write_bytes(b"short")
        report = checked(library, models(made.init, first, second, third, tmp_path / "none"))
        assert not report.ok
        assert (report.models, report.needed_bytes) == ((), 0)
        for folder in (first, second, tmp_path / "none"):
            assert any(str(folder) in problem for problem in report.problems)
        assert not any(str(third) in problem for problem in report.problems)
        assert len(set(report.problems)) == len(report.problems)
        assert all("\n" not in problem for problem in report.problems)

    @pytest.mark.parametrize("what", ["shape", "config", "tokenizer", "kinds"])
    def test_models_that_do_not_belong_together(self, library, made, tmp_path, what):
        if what == "shape":
            other = make_model("llama", tmp_path / "other", hidden_size=16)
        else:
            (other,) = make_policies(made.init, tmp_path, num=1, names=("other",))
        if what == "config":
            config = json.loads((other / "config.json").read_text())
            (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
        elif what == "tokenizer":
            text = (other / "tokenizer.json").read_text()
            (other / "tokenizer.json").write_text(text.replace("<|user|>", "<|human|>"))
        others = [make_adapter(made.init, tmp_path / "adapter")] if what == "kinds" else []
        report = checked(library, models(made.init, other, *others))
        assert not report.ok
        assert any(str(other) in problem for problem in report.problems)

    def test_an_adapter_whose_base_is_lost_takes_the_init(self, library, made, tmp_path):
        adapter = make_adapter(made.init, tmp_path / "adapter")
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))
        assert checked(library, models(made.init, adapter)).ok
        assert checked(library, models(made.init, adapter, base=made.init)).ok
        (adapter / "adapter_model.safetensors").unlink()
        (problem, *_) = checked(library, models(made.init, adapter)).problems
        assert str(adapter) in problem

    def test_a_run_whose_model_is_gone_or_another(self, library, made, tmp_path):
        config = library.run_folder("tiny").config_file
        other = make_model("llama", tmp_path / "other", seed=5)
        for name, word in (("/gone/model", "/gone/model"), (str(other), "put the original weights back")):
            text = config.read_text()
            current = library.config(TINY).model.name
            config.write_text(text.replace(current, name))
            report = checked(library, TINY)
            assert not report.ok
            assert any(word in problem for problem in report.problems)

    def test_a_run_without_a_policy(self, library):
        run = library.run_folder("tiny")
        for iteration in (1, 2):
            shutil.rmtree(run.iteration(iteration))
        (problem,) = checked(library, TINY).problems
        assert "not trained yet" in problem


class TestMistakes:
    def test_of_the_request(self, library):
        with pytest.raises(ConfigError):
            checked(library, Selection())
        with pytest.raises(WorkspaceError):
            checked(library, Selection(run="none"))

    def test_cancelled(self, library, made):
        with pytest.raises(Cancelled):
            checked(library, made.full, Heard(patience=2))
