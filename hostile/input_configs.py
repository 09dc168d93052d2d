"""TOML configurations of runs that are wrong: by hand with a line each, and put together by chance."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["TomlCase", "random_mapping", "toml_cases"]


@dataclass(frozen=True, kw_only=True)
class TomlCase:
    """A file: its bytes, a line on it, and what must come of it.

    expected: "refused", or "read", then `steps` are the steps of training.
    named: what a refusal names.
    """

    line: str
    content: bytes
    expected: Literal["refused", "read"] = "refused"
    named: str = ".toml"
    steps: tuple[int, ...] = (30,)


def _refused(named: str, **texts: str) -> Iterator[TomlCase]:
    for line, text in texts.items():
        yield TomlCase(line=line.replace("_", " "), content=text.encode("utf-8"), named=named)


def toml_cases() -> list[TomlCase]:
    """Return all of them."""
    return [*_not_toml(), *_keys(), *_values(), *_tables(), *_kept()]


def _not_toml() -> Iterator[TomlCase]:
    yield TomlCase(line="binary", content=bytes(range(256)))
    yield TomlCase(line="UTF-16", content="[training]\nsteps = 3\n".encode("utf-16"))
    yield TomlCase(line="UTF-32", content="[training]\nsteps = 3\n".encode("utf-32"))
    yield TomlCase(line="not UTF-8", content=b'[model]\nname = "\xff"\n')
    yield TomlCase(line="a NUL", content=b"[training]\nsteps = 3\0\n")
    yield TomlCase(line="a NUL in a string", content=b'[model]\nname = "a\0b"\n')
    yield TomlCase(line="arrays 10,000 deep", content=b"a = " + b"[" * 10_000 + b"]" * 10_000)
    yield TomlCase(line="tables 10,000 deep", content=b"a = " + b"{a = " * 10_000 + b"1" + b"}" * 10_000)
    yield TomlCase(line="a key 4,000 deep", content=b"a" + b".a" * 4_000 + b" = 1\n", named="a")
    yield TomlCase(line="a number of 6000 digits", content=b"[training]\nsteps = " + b"9" * 6000)
    yield TomlCase(line="2 MB", content=b'[model]\nname = "' + b"x" * 2_000_000 + b'"\n')
    yield TomlCase(line="2 MB of comments", content=b"# x\n" * 500_000)
    yield from _refused(
        ".toml",
        YAML="training:\n  steps: 3\n",
        JSON='{"training": {"steps": 3}}',
        HTML="<html></html>",
        a_cut_table="[training",
        a_cut_value="[training]\nsteps =",
        a_cut_string='[model]\nname = "x',
        the_same_key_twice="[training]\nsteps = 3\nsteps = 4\n",
        the_same_table_twice="[training]\nsteps = 3\n[training]\nbeta = 1\n",
        a_table_and_a_key="training = 3\n[training]\nsteps = 3\n",
        a_key_twice_in_other_notations='[training]\nsteps = 3\n"steps" = 4\n',
        a_table_and_a_list_of_tables="[runs]\n[[runs]]\n",
    )


def _keys() -> Iterator[TomlCase]:
    yield from _refused(
        "unknown field",
        an_unknown_section="[trainer]\nsteps = 3\n",
        an_unknown_key="[training]\nstepz = 3\n",
        a_key_in_capitals="[training]\nSTEPS = 3\n",
        a_section_with_blanks='[" training "]\nsteps = 3\n',
        a_key_that_looks_alike='[training]\n"st\u0435ps" = 3\n',
        a_key_with_a_line_break='[training]\n"a\\nwarp-core: all is well" = 3\n',
        a_key_that_commands_a_terminal='[training]\n"\\u001b[2J" = 3\n',
        an_empty_key='[training]\n"" = 3\n',
        a_key_of_python='[training]\n"__class__" = 3\n',
        a_long_key=f'[training]\n"{"x" * 100_000}" = 3\n',
        a_key_beyond_its_section="steps = 3\n",
    )


def _values() -> Iterator[TomlCase]:
    fields = {
        "training.steps": ("0", "-1", "1.5", "true", "[]", "[[3]]", '"3"', "nan", "[3, -1]", "{}", "1979-05-27"),
        "training.beta": ("nan", "-1", "inf", "-inf", '"high"', "[]", "true", "07:32:00"),
        "training.learning_rate": ("0", "nan", "inf", "-1e-3", '""'),
        "training.temperature": ("0", "nan", "inf"),
        "training.mu": ("1.1", "nan", "-0.1"),
        "training.adam_betas": ("[0.9]", "[0.9, 0.9, 0.9]", "[0.9, 1.0]", "[nan, 0.9]", "0.9"),
        "training.seed": ("-1", "1.5", '"x"', "inf"),
        "training.anchor": ('"best"', "3", "[]"),
        "merge.eta": ("0", "2.1", "nan", "inf", "-0.3"),
        "merge.weights": ("[0.5, 0.6]", "[1.0]", "[nan, 1.0]", "[inf, 0]", "[2.0, -1.0]", "[1e308, 1e308]"),
        "warp.policies": ("0", "65", "1e99", "nan", "1000000"),
        "warp.iterations": ("0", "65", "-5"),
        "adapter.rank": ("0", "-3", "2.5", "nan"),
        "adapter.targets": ("[]", "[3]", "[[]]"),
        "adapter.kind": ('"dora"', '"LORA"', "1"),
        "model.name": ("3", "[]", "true", "{}"),
        "model.dtype": ('"int8"', "16", '"float64"'),
        "model.chat_template": ('"maybe"', "2", "[]"),
        "reward.terms": ("[]", "[3]", "3", "{}"),
        "prompts.train": ("3", "[]", '["a", "b"]'),
        "evaluation.etas": ("[nan]", "[3]", "[-1]", '["x"]'),
        "evaluation.methods": ('["ties"]', "[1]"),
        "evaluation.prompts": ("0", "-1", "nan"),
    }
    for place, values in fields.items():
        section, name = place.split(".")
        for value in values:
            text = f"[{section}]\n{name} = {value}\n"
            yield TomlCase(line=f"{place} = {value}", content=text.encode(), named=section)


def _tables() -> Iterator[TomlCase]:
    yield from _refused("model", a_section_that_is_text='model = "llama"\n', a_section_that_is_a_list="[[model]]\n")
    yield from _refused(
        "runs",
        runs_that_are_a_table="[runs]\nreward = {}\n",
        runs_that_are_a_number="runs = 3\n",
        one_run_for_two_policies="[[runs]]\n",
        an_unknown_table_of_a_run="[[runs]]\nadapter = {}\n[[runs]]\n",
        an_unknown_field_of_a_run="[[runs]]\ntraining = { x = 1 }\n[[runs]]\n",
        a_date_in_a_run="[[runs]]\ntraining = { beta = 1979-05-27 }\n[[runs]]\n",
        nan_in_a_run="[[runs]]\ntraining = { beta = nan }\n[[runs]]\n",
        a_run_that_is_a_number="runs = [1, 2]\n",
        deep_values_in_a_run="[[runs]]\ntraining = { beta = " + "[" * 150 + "]" * 150 + " }\n[[runs]]\n",
    )


def _kept() -> Iterator[TomlCase]:
    text = "[training]\nsteps = 7\n"
    for line, content in {
        "an empty file": b"",
        "only comments": b"# nothing\n\n",
        "only a section": b"[training]\n",
    }.items():
        yield TomlCase(line=line, content=content, expected="read")
    for line, content in {
        "LF": text.encode(),
        "CR LF": text.replace("\n", "\r\n").encode(),
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "lone CR": text.replace("\n", "\r").encode(),
        "no line end": text.rstrip().encode(),
        "an inline table": b"training = { steps = 7 }\n",
        "a dotted key": b"training.steps = 7\n",
        "a hexadecimal number": b"[training]\nsteps = 0x7\n",
        "a comment with emoji": text.encode() + "# \U0001f600\n".encode(),
    }.items():
        yield TomlCase(line=line, content=content, expected="read", steps=(7,))


SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 10**9, 10**30, 0.0, 0.3, -0.5, 1.0, 1e-300, 1e300, float("nan"), float("inf"),
    float("-inf"), "", "x", "b", "lora", "slerp", "float32", "sft", "mean", "all-linear", "../../x", "/etc/passwd",
    "a\nb", "\x1b[2J", "\u202e", "\U0001f600", '"', "\\", "'", "\x7f", "x" * 3000, "length:-0.01", "length:nan",
)  # fmt: skip


def random_mapping(chance: random.Random, sections: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return a configuration with a few fields of any value."""
    mapping: dict[str, Any] = {}
    for _ in range(chance.randint(1, 4)):
        section = chance.choice([*sections, "runs", "other"])
        if section == "runs":
            tables: tuple[dict[str, Any], ...] = (
                {},
                {"training": _fields(chance, sections["training"])},
                {"reward": {"terms": _value(chance, 1)}},
            )
            mapping["runs"] = chance.choice(([chance.choice(tables) for _ in range(2)], _value(chance, 0)))
        elif section == "other" or chance.random() < 0.05:
            mapping[chance.choice((section, "__proto__", "a\nb", ""))] = _value(chance, 0)
        else:
            known = mapping.get(section)
            mapping[section] = (known if isinstance(known, dict) else {}) | _fields(chance, sections[section])
    return mapping


def _fields(chance: random.Random, names: tuple[str, ...]) -> dict[str, Any]:
    return {chance.choice(names): _value(chance, 0) for _ in range(chance.randint(1, 3))}


def _value(chance: random.Random, depth: int) -> Any:
    if depth < 3 and chance.random() < 0.25:
        return [_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    if depth < 3 and chance.random() < 0.08:
        return {str(chance.choice(SCALARS))[:20]: _value(chance, depth + 1)}
    return chance.choice(SCALARS)
