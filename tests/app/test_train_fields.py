"""Fields from the schema, texts to configurations and back, problems sorted to fields, and the layout of the form."""

import pytest

from app.train.fields import Field, fields_of, from_config, from_text, problems_by_field, to_config, to_text
from app.train.labels import ELSEWHERE, ESSENTIALS, GROUPS, LORA_ONLY, label_of, ungrouped
from app.train.presets import PRESETS, preset
from warp_core.training.config import (
    SECTIONS,
    WarpConfig,
    config_from_mapping,
    config_problems,
    config_to_mapping,
    json_schema,
)


@pytest.fixture(scope="module")
def fields() -> dict[str, Field]:
    return fields_of(json_schema())


def test_every_field_of_every_section_is_there_with_its_help(fields):
    wanted = {
        f"{section}.{name}"
        for section, part in config_to_mapping(WarpConfig()).items()
        if section in SECTIONS
        for name in part
    }
    assert set(fields) == wanted
    assert all(field.help for field in fields.values())
    assert fields["training.mu"].help == "EMA rate of the anchor."


def test_kinds_and_limits(fields):
    kinds = {
        "model.name": "text",
        "model.dtype": "choice",
        "model.chat_template": "flag",
        "training.steps": "list",
        "training.adam_betas": "list",
        "training.beta": "number",
        "training.prompts_per_step": "whole",
        "training.seed": "digits",
        "evaluation.methods": "choices",
        "adapter.targets": "list",
    }
    assert {name: fields[name].kind for name in kinds} == kinds
    assert fields["model.dtype"].options == ("float32", "bfloat16", "auto")
    assert fields["evaluation.methods"].options == ("slerp", "lerp", "slerp-weights")
    assert (fields["warp.policies"].minimum, fields["warp.policies"].maximum) == (1.0, 64.0)
    assert (fields["merge.eta"].minimum, fields["merge.eta"].maximum) == (0.0, 2.0)
    assert (fields["training.beta"].minimum, fields["training.beta"].maximum) == (0.0, None)


def test_a_configuration_survives_the_form(fields):
    unusual = config_from_mapping(
        {
            "adapter": {"targets": ["q_proj", "v_proj"]},
            "training": {"steps": [9000, 7000], "adam_betas": [0.9, 0.95], "learning_rate": 1e-6, "seed": 2**60},
            "merge": {"weights": [0.25, 0.75]},
            "evaluation": {"etas": [0.0, 1 / 3], "methods": ["slerp", "lerp"]},
        }
    )
    mapping = config_to_mapping(unusual)
    again = to_config(from_config(mapping, fields), fields)
    assert config_from_mapping(again) == unusual
    assert again["training"]["seed"] == 2**60


def test_what_a_configuration_leaves_out_is_as_by_default(fields):
    assert config_from_mapping(to_config(from_config({}, fields), fields)) == WarpConfig()


@pytest.mark.parametrize(
    ("text", "values"),
    [("40, 12", [40, 12]), ("0.1 .5,1e-3", [0.1, 0.5, 0.001]), ("q_proj,v_proj", ["q_proj", "v_proj"]), (" , ", [])],
)
def test_lists_as_people_write_them(text, values):
    assert from_text(text) == values


def test_lists_are_written_as_short_as_they_read_back():
    assert to_text([40, 12]) == "40, 12"
    assert to_text([0.0, 0.3, 1 / 3]) == "0, 0.3, 0.3333333333333333"
    assert from_text(to_text([1 / 3])) == [1 / 3]


def test_a_single_value_stands_for_a_list(fields):
    values = from_config({"training": {"steps": 7}, "evaluation": {"methods": "lerp"}}, fields)
    assert (values["training.steps"], values["evaluation.methods"]) == ("7", ["lerp"])


def test_what_is_no_number_reaches_the_check_which_names_the_field(fields):
    values = from_config({}, fields) | {"training.steps": "20, x", "training.seed": "abc", "merge.weights": "0.5 0.6"}
    at, others = problems_by_field(config_problems(to_config(values, fields)), fields)
    assert "integer" in at["training.steps"]
    assert "'x'" in at["training.steps"]
    assert "integer" in at["training.seed"]
    assert others == []


def test_problems_go_to_the_field_they_name():
    ids = ["training.steps", "merge.weights", "runs"]
    at, others = problems_by_field(
        [
            "training.steps.2: Input should be greater than 0 (got 0)",
            "training.steps.3: also wrong",
            "merge.weights: they add up to 1.1, not to 1",
            "runs.0.training.beta: too small",
            "[[runs]]: 2 tables for warp.policies = 3: give one per policy, or none",
            "something else",
        ],
        ids,
    )
    assert at["training.steps"] == "Input should be greater than 0 (got 0); also wrong"
    assert at["merge.weights"] == "they add up to 1.1, not to 1"
    assert at["runs"].split("; ")[0] == "0.training.beta: too small"
    assert "2 tables" in at["runs"]
    assert others == ["something else"]


def test_every_field_has_its_place_in_the_form_once(fields):
    placed = [one for rows in (*ESSENTIALS.values(), *GROUPS.values()) for row in rows for one in row]
    assert sorted([*placed, *ELSEWHERE]) == sorted(fields)
    assert ungrouped(fields) == ()
    assert set(LORA_ONLY) <= set(placed)


def test_a_new_field_would_be_shown_at_the_end(fields):
    assert ungrouped([*fields, "training.new_knob"]) == (("training.new_knob",),)
    assert label_of("training.new_knob") == "New knob"


def test_labels_are_those_of_the_paper():
    assert [label_of(one) for one in ("warp.policies", "warp.iterations", "training.steps", "training.mu")] == [
        "Policies M",
        "Iterations I",
        "Steps T",
        "EMA mu",
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(fields, name):
    config = config_from_mapping(to_config(from_config(preset(name), fields), fields))
    expected = {"defaults": WarpConfig().training.steps, "demo": (20,), "paper": (9000, 7000, 5000)}
    assert config.training.steps == expected[name]


def test_the_papers_preset_has_the_papers_numbers():
    config = config_from_mapping(preset("paper"))
    training = config.training
    assert (config.warp.policies, config.warp.iterations, config.merge.eta) == (2, 5, 0.3)
    assert (training.beta, training.mu, training.learning_rate, training.warmup_steps) == (0.1, 0.01, 1e-6, 100)
    assert (training.prompts_per_step * training.completions_per_prompt, training.baseline) == (128, "none")
    assert [config.steps_in(i) for i in (1, 2, 3, 5)] == [9000, 7000, 5000, 5000]


def test_loading_a_preset_leaves_the_next_one_untouched():
    preset("paper")["training"] = "gone"
    assert preset("paper")["training"]["beta"] == 0.1
