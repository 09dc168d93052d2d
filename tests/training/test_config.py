"""The configuration: every field documented, TOML round trip, and one line that names the field for every misuse."""

import ast
import dataclasses
import inspect
import json
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from warp_core.errors import ConfigError
from warp_core.training import config as module
from warp_core.training.config import (
    SECTIONS,
    RunOverride,
    WarpConfig,
    config_from_mapping,
    config_to_mapping,
    config_to_toml,
    docs_table,
    json_schema,
    kept_config,
    load_config,
    load_kept_config,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "config.md"


def documented_fields() -> dict[str, dict[str, str]]:
    """The string that stands right under each field, by class, read from the syntax tree."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for line, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                    texts[line.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


@pytest.mark.parametrize("section", [*SECTIONS, "[runs]"])
def test_every_field_is_in_the_documentation_with_its_own_help(section):
    owner = SECTIONS.get(section, RunOverride)
    table = docs_table().split(f"## `[{section}]`")[1].split("\n## ")[0]
    texts = documented_fields()[owner.__name__]
    for one in dataclasses.fields(owner):
        assert texts.get(one.name), f"{section}.{one.name} has no help"
        row = next(line for line in table.splitlines() if line.startswith(f"| `{one.name}` |"))
        assert texts[one.name] in row
        assert row.replace("\\|", "").count("|") == 4, f"a bar in the help of {one.name} breaks the table"


def test_docs_are_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == docs_table(), (
        "run `python -m warp_core.training.config > docs/config.md`"
    )


def test_the_schema_has_every_section():
    schema = json_schema()
    assert set(schema["properties"]) == {*SECTIONS, "runs"}
    json.dumps(schema)


def test_toml_round_trip_of_the_defaults():
    assert config_from_mapping(tomllib.loads(config_to_toml(WarpConfig()))) == WarpConfig()


def test_toml_round_trip_of_everything_unusual(tmp_path):
    unusual = config_from_mapping(
        {
            "model": {"name": 'a "quoted" \\ path/\U0001f600 \u00fc \x7f\t', "chat_template": True},
            "adapter": {"targets": ["q_proj", "v_proj"], "alpha": 1e-7},
            "reward": {"terms": ["sentiment", "length:-0.0005"]},
            "training": {"steps": [9000, 7000, 5000], "learning_rate": 1e-6, "adam_betas": [0.9, 0.95], "beta": 0},
            "merge": {"weights": [0.25, 0.75], "eta": 0.3},
            "runs": [{"reward": {"terms": ["length"]}}, {"training": {"beta": 1e-20, "steps": 5, "seed": 7}}],
        }
    )
    file = tmp_path / "c.toml"
    file.write_text(config_to_toml(unusual), encoding="utf-8")
    again = load_config(file)
    assert again == unusual
    assert again.training.steps == (9000, 7000, 5000)
    assert again.for_run(1).training.steps == (5,)
    assert config_from_mapping(json.loads(json.dumps(config_to_mapping(unusual)))) == unusual


def test_a_kept_configuration_is_read_whole_or_not_at_all(tmp_path):
    config = config_from_mapping({"runs": [{"training": {"seed": 7}}, {"training": {"seed": 123}}]})
    file = tmp_path / "c.toml"
    whole = kept_config(config)
    file.write_text(whole, encoding="utf-8")
    assert load_kept_config(file) == load_config(file) == config
    file.write_text(whole.replace("\n", "\r\n") + "\r\n", encoding="utf-8")
    assert load_kept_config(file) == config
    cut = [whole[:end] for end in range(len(whole) - 1)]
    as_another = 0
    for text in cut:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="cut short"):
            load_kept_config(file)
        with suppress(ConfigError):
            as_another += load_config(file) != config
    assert as_another > 20  # which the last line is there for


def test_of_a_kept_configuration_other_damage_is_told_as_of_any(tmp_path):
    file = tmp_path / "c.toml"
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_kept_config(file)
    file.write_text(f"x = \n{kept_config(WarpConfig())}", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_kept_config(file)


@pytest.mark.parametrize("read", [load_config, load_kept_config])
@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "gone", "."])
def test_a_path_that_cannot_be_opened_is_told_in_one_line(tmp_path, read, name):
    with pytest.raises(ConfigError, match="cannot read the configuration") as caught:
        read(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_single_value_stands_for_a_list():
    config = config_from_mapping({"training": {"steps": 7}, "reward": {"terms": "length"}})
    assert config.training.steps == (7,)
    assert config.reward.terms == ("length",)
    assert [config.steps_in(i) for i in (1, 2, 9)] == [7, 7, 7]
    assert [config_from_mapping({"training": {"steps": [9, 5]}}).steps_in(i) for i in (1, 2, 3)] == [9, 5, 5]


def test_overrides_from_the_command_line(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[training]\nsteps = 3\nbeta = 0.5\n")
    config = load_config(
        file,
        overrides=["training.steps=[50, 40]", "model.name=smollm2-135m", "training.learning_rate=1e-5", "merge.eta=1"],
    )
    assert config.training.steps == (50, 40)
    assert config.training.beta == 0.5
    assert config.training.learning_rate == 1e-5
    assert config.merge.eta == 1.0
    assert load_config(None).training.steps == (30,)


def test_each_run_gets_its_own_overrides():
    config = config_from_mapping(
        {"runs": [{"reward": {"terms": ["length"]}}, {"training": {"beta": 0.7, "seed": 9}}], "training": {"mu": 0.2}}
    )
    first, second = config.for_run(0), config.for_run(1)
    assert first.reward.terms == ("length",)
    assert first.training == config.training
    assert second.reward == config.reward
    assert dataclasses.asdict(second.training) == dataclasses.asdict(config.training) | {"beta": 0.7, "seed": 9}
    assert first.runs == second.runs == ()
    assert config_from_mapping({}).for_run(0) == WarpConfig()


MISUSES = {
    "unknown section": ({"trainer": {}}, r"^trainer: unknown field; known here: model, adapter, "),
    "unknown field": ({"training": {"stepz": 1}}, r"^training.stepz: unknown field; known here: steps, "),
    "wrong type": ({"training": {"beta": "high"}}, r"^training.beta: .*number.*\(got 'high'\)$"),
    "fraction of steps": ({"training": {"steps": [3, 2.5]}}, r"^training.steps.1: .*integer.*2.5"),
    "no steps": ({"training": {"steps": []}}, r"^training.steps: .*at least 1"),
    "zero steps": ({"training": {"steps": 0}}, r"^training.steps.0: .*greater than or equal to 1 \(got 0\)"),
    "negative rate": ({"training": {"learning_rate": -1e-3}}, r"^training.learning_rate: .*greater than 0"),
    "NaN": ({"training": {"beta": float("nan")}}, r"^training.beta: .*"),
    "infinity": ({"training": {"temperature": float("inf")}}, r"^training.temperature: .*finite"),
    "zero temperature": ({"training": {"temperature": 0}}, r"^training.temperature: .*greater than 0"),
    "mu above one": ({"training": {"mu": 1.5}}, r"^training.mu: .*less than or equal to 1"),
    "Adam's beta of one": ({"training": {"adam_betas": [0.9, 1.0]}}, r"^training.adam_betas.1: .*less than 1"),
    "choice": ({"training": {"anchor": "best"}}, r"^training.anchor: .*'ema' or 'sft' \(got 'best'\)"),
    "method": ({"merge": {"method": "ties"}}, r"^merge.method: .*slerp"),
    "eta": ({"merge": {"eta": 2.5}}, r"^merge.eta: .*2"),
    "eta of the front": ({"evaluation": {"etas": [0.3, -1]}}, r"^evaluation.etas.1: .*0"),
    "dtype": ({"model": {"dtype": "int8"}}, r"^model.dtype: "),
    "section is no table": ({"model": "llama"}, r"^model: .*llama"),
    "weights do not add up": ({"merge": {"weights": [0.5, 0.6]}}, r"^merge.weights: they add up to 1.1"),
    "weights for other runs": ({"merge": {"weights": [1.0]}}, r"^merge.weights: 1 numbers for warp.policies = 2"),
    "runs for other M": ({"runs": [{}]}, r"^\[\[runs\]\]: 1 tables for warp.policies = 2"),
    "unknown table of a run": ({"runs": [{"adapter": {}}, {}]}, r"^runs.0.adapter: unknown field; .*reward, training"),
    "unknown field of a run": ({"runs": [{}, {"training": {"x": 1}}]}, r"^runs.1.training.x: unknown field; .*steps"),
    "bad value of a run": ({"runs": [{"training": {"mu": 7}}, {}]}, r"^runs.0.training.mu: .*less than or equal to 1"),
    "no rewards": ({"reward": {"terms": []}}, r"^reward.terms: "),
    "leave-one-out of one": ({"training": {"completions_per_prompt": 1}}, r"^training.completions_per_prompt: .*2"),
    "leave-one-out of one, in a run": (
        {"runs": [{"training": {"completions_per_prompt": 1}}, {}]},
        r"^runs.0.training.completions_per_prompt: .*at least 2",
    ),
    "slerp-weights is no adapter": (
        {"merge": {"method": "slerp-weights"}, "warp": {"iterations": 2}},
        r"^merge.method: slerp-weights .*adapter.kind = lora",
    ),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_one_line_that_names_the_field(misuse):
    mapping, message = MISUSES[misuse]
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_mapping(mapping)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training = ", "is not valid TOML"),
        ("[training]\nsteps = 1e", "is not valid TOML"),
        ("[a]\n[a]\n", "is not valid TOML"),
    ],
)
def test_bad_files(text, message, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "expected section.field=value"),
        ("steps=5", "expected section.field=value"),
        ("training.steps=many", r"training.steps.0: .*'many'"),
        ("trainer.steps=5", "trainer: unknown field"),
        ("runs.training=5", "runs"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, overrides=[override])
    assert "\n" not in str(caught.value)


def test_overriding_what_is_not_a_table(tmp_path):
    (tmp_path / "c.toml").write_text("training = 3\n")
    with pytest.raises(ConfigError, match="training is not a table"):
        load_config(tmp_path / "c.toml", overrides=["training.steps=1"])


def test_slerp_weights_is_allowed_where_it_can_be_written():
    config_from_mapping({"merge": {"method": "slerp-weights"}})
    config_from_mapping({"merge": {"method": "slerp-weights"}, "warp": {"iterations": 2}, "adapter": {"kind": "full"}})
