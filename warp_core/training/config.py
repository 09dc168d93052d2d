"""The configuration of a WARP run: frozen dataclasses, TOML in, JSON out, one validation path.

    config = load_config(Path("run.toml"), overrides=["training.steps=50"])

Every field's help stands under it; `docs/config.md` is generated from here (`python -m warp_core.training.config`).
"""

import dataclasses
import inspect
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from warp_core.errors import ConfigError

__all__ = [
    "WarpConfig",
    "config_from_mapping",
    "config_problems",
    "config_to_mapping",
    "docs_table",
    "json_schema",
    "kept_config",
    "load_config",
    "load_kept_config",
]

LARGEST_BYTES = 1_000_000
LAST_LINE = "# end of the configuration"
# Attribute docstrings become the descriptions of the JSON schema, which the form of the web app shows.
STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
# Strict: true is no number, and neither is the text "3".
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The SFT policy that everything starts from."""

    name: str = "smollm2-135m"
    """A local folder, a Hub id, or smollm2-135m."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Compute dtype. Trained weights, EMA and optimizer are float32 whatever it is. auto is bfloat16 where the device
    has it and a short measurement says that it pays; the run's own config.toml has what was chosen."""
    chat_template: bool = False
    """Give each prompt as the user's turn of a chat; otherwise the model continues the text."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdapterConfig:
    """What is trained: a LoRA adapter over the shared base, or every weight."""

    kind: Literal["lora", "full"] = "lora"
    """lora, or full fine-tuning."""
    rank: Count = 16
    """Rank of the adapter that each iteration adds."""
    alpha: Positive = 16.0
    """LoRA's alpha: the update is alpha / rank * B A."""
    train: Literal["b", "both"] = "b"
    """b keeps A frozen and shared by the runs of an iteration: EMA and merges are exact at the same rank.
    both trains A too: merges stay exact by concatenation, but the EMA averages factors, an approximation."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("all-linear",)
    """Names of the linear layers to adapt, or all-linear."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of a finished adapter on disk; its factors are rounded to it once, at the end of the run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardConfig:
    """What is maximised."""

    terms: Annotated[tuple[str, ...], Field(min_length=1)] = ("sentiment",)
    """Rewards that are added up, each NAME or NAME:WEIGHT."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptsConfig:
    """Where prompts come from."""

    train: str = "reviews-train"
    """A file with one prompt a line (or JSON lines with a `prompt`), or a built-in set."""
    evaluation: str = "reviews-eval"
    """Held-out prompts, for the points of every curve."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """One REINFORCE run (stage 1)."""

    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (30,)
    """T: steps per run, one number per iteration (the last one repeats)."""
    prompts_per_step: Count = 8
    """Different prompts in a batch."""
    completions_per_prompt: Count = 4
    """k: completions of each prompt."""
    max_new_tokens: Count = 24
    """Length limit of a completion."""
    temperature: Positive = 0.9
    """Temperature of sampling, and of every log-probability."""
    learning_rate: Positive = 1e-3
    """Adam's rate after warm-up."""
    adam_betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's decay rates."""
    warmup_steps: Whole = 5
    """Steps over which the rate rises linearly."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    beta: NonNegative = 0.05
    """Weight of the KL to the anchor; 0 is no anchor."""
    mu: Share = 0.05
    """EMA rate of the anchor."""
    anchor: Literal["ema", "sft"] = "ema"
    """ema follows the policy (WARP), sft stays (the usual RLHF baseline)."""
    baseline: Literal["none", "mean", "leave-one-out"] = "leave-one-out"
    """What is subtracted from the return: nothing (the paper), the batch's mean, or the prompt's other completions."""
    micro_batch: Whole = 0
    """Completions per forward and backward pass; 0 takes the whole batch at once."""
    evaluate_every: Whole = 10
    """Measure reward and KL on held-out prompts every so many steps; 0 only after the last step."""
    kl_ceiling: Positive = 200.0
    """A run stops when an evaluation finds this KL to the SFT policy (nats per completion)."""
    save_every: Whole = 0
    """Save the resumable state every so many steps; 0 is 1 for adapters and 25 for full fine-tuning."""
    keep_every: Whole = 0
    """Keep the policy as a checkpoint of its own every so many steps; 0 keeps the last one alone."""
    keep_ema: bool = False
    """Keep the EMA anchor beside every checkpoint that is kept."""
    seed: Whole = 0
    """Everything random is derived from it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MergeConfig:
    """Stages 2 and 3."""

    method: Literal["slerp", "lerp", "slerp-weights"] = "slerp"
    """How the policies of an iteration are merged."""
    granularity: Literal["layer", "tensor", "model"] = "layer"
    """One angle per layer, per tensor, or one in all."""
    weights: tuple[NonNegative, ...] = ()
    """Share of each policy, adding up to 1; empty is equal shares."""
    eta: Annotated[float, Field(gt=0, le=2, strict=True)] = 0.3
    """LITI: the next iteration starts from (1 - eta) init + eta merged."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarpLoopConfig:
    """Algorithm 1's outer loop."""

    policies: Annotated[int, Field(ge=1, le=64, strict=True)] = 2
    """M: runs per iteration."""
    iterations: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    """I: how often train, merge, interpolate is repeated."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """How points of a front, and of the training curves, are measured."""

    prompts: Count = 64
    """The first so many held-out prompts."""
    samples_per_prompt: Count = 2
    """Completions of each prompt for a point of the front."""
    training_samples_per_prompt: Count = 1
    """Completions of each prompt for a point of a training curve."""
    etas: tuple[Annotated[float, Field(ge=0, le=2, strict=True)], ...] = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
    """LITI coefficients on the front."""
    methods: tuple[Literal["slerp", "lerp", "slerp-weights"], ...] = ("slerp",)
    """Merges to draw a front for."""
    kl_estimator: Literal["exact", "mc"] = "exact"
    """exact sums the KL over the whole vocabulary at each position; mc is the paper's log-ratio."""
    batch_size: Count = 64
    """Completions sampled at once."""
    seed: Whole = 1234
    """Common random numbers of every point."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunOverride:
    """What one of the M runs does differently: the tables reward and training with the fields to change."""

    reward: dict[str, Any] = field(default_factory=dict)
    """Fields of [reward]."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of [training]."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarpConfig:
    """A whole WARP run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    warp: WarpLoopConfig = field(default_factory=WarpLoopConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runs: tuple[RunOverride, ...] = ()

    def __post_init__(self) -> None:
        training, num = self.training, self.warp.policies
        if self.runs and len(self.runs) != num:
            raise ValueError(
                f"[[runs]]: {len(self.runs)} tables for warp.policies = {num}: give one per policy, or none"
            )
        if self.merge.weights and len(self.merge.weights) != num:
            raise ValueError(f"merge.weights: {len(self.merge.weights)} numbers for warp.policies = {num}")
        if self.merge.weights and abs(sum(self.merge.weights) - 1.0) > 1e-6:
            raise ValueError(f"merge.weights: they add up to {sum(self.merge.weights):g}, not to 1")
        if training.baseline == "leave-one-out" and training.completions_per_prompt < 2:
            raise ValueError("training.completions_per_prompt: the leave-one-out baseline needs at least 2")
        if self.merge.method == "slerp-weights" and self.adapter.kind == "lora" and self.warp.iterations > 1:
            raise ValueError(
                "merge.method: slerp-weights scales the base weights, so with adapter.kind = lora there is no adapter "
                "for the next iteration to start from: choose slerp or lerp, or adapter.kind = full"
            )
        for m in range(len(self.runs)):
            try:
                self.for_run(m)
            except ConfigError as error:
                raise ValueError(f"runs.{m}.{error}") from error

    def for_run(self, policy: int) -> "WarpConfig":
        """Return the configuration of run `policy` (0-based) with its overrides applied and `runs` empty.

        Raises:
            ConfigError: an override is not valid.
        """
        if not self.runs:
            return self
        override = self.runs[policy]
        whole = config_to_mapping(self) | {"runs": []}
        for section in ("reward", "training"):
            whole[section] = whole[section] | _as_given(section, getattr(override, section))
        return config_from_mapping(whole)

    def steps_in(self, iteration: int) -> int:
        """Return T of an iteration (1-based)."""
        steps = self.training.steps
        return steps[min(iteration, len(steps)) - 1]

    @property
    def merge_weights(self) -> tuple[float, ...]:
        """The share of each policy."""
        num = self.warp.policies
        return self.merge.weights or tuple(1.0 / num for _ in range(num))


SECTIONS: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(WarpConfig).items() if dataclasses.is_dataclass(hint)
}


def _as_given(section: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Let a single value stand for a list of one, where a list is wanted (`steps = 30`)."""
    hints = get_type_hints(SECTIONS[section], include_extras=False) if section in SECTIONS else {}
    return {
        name: [value] if get_origin(hints.get(name)) is tuple and not isinstance(value, list | tuple | dict) else value
        for name, value in fields.items()
    }


def config_from_mapping(mapping: Mapping[str, Any]) -> WarpConfig:
    """Validate a mapping as it comes from TOML or JSON.

    Raises:
        ConfigError: the first problem, with the field it is in and the nearest thing to do.
    """
    try:
        return _validated(mapping)
    except ValidationError as error:
        raise ConfigError(_in_words(error.errors()[0])) from error


def config_problems(mapping: Mapping[str, Any]) -> list[str]:
    """Return all that is wrong with a mapping, one line a field; empty if `config_from_mapping` would take it."""
    try:
        _validated(mapping)
    except ValidationError as error:
        return [_in_words(one) for one in error.errors()]
    return []


def _validated(mapping: Mapping[str, Any]) -> WarpConfig:
    whole = {name: _as_given(name, part) if isinstance(part, dict) else part for name, part in mapping.items()}
    return TypeAdapter(WarpConfig).validate_python(whole)


def _in_words(problem: Mapping[str, Any]) -> str:
    place = ".".join(_shown(str(part)) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        message = f"unknown field; known here: {', '.join(_known(problem['loc']))}"
    elif problem["type"] != "value_error":
        message = f"{message} (got {repr(problem.get('input'))[:80]})"
    return f"{place}: {message}" if place else message


def _shown(name: str) -> str:
    """A name as it came, in one line and cut."""
    return name if name.isprintable() and len(name) <= 80 else repr(name[:80])


def _known(place: Sequence[Any]) -> list[str]:
    section = SECTIONS.get(str(place[0])) if len(place) > 1 else WarpConfig
    return [one.name for one in dataclasses.fields(section or RunOverride)]


def load_config(path: Path | None, *, overrides: Sequence[str] = ()) -> WarpConfig:
    """Read a TOML file (None: all defaults) and apply `section.field=value` overrides, values in TOML's notation.

    Raises:
        ConfigError: not TOML, an unknown field, or a value out of range.
    """
    mapping = {} if path is None else _parsed(path, _text_of(path))
    for override in overrides:
        _apply(mapping, override)
    return config_from_mapping(mapping)


def kept_config(config: WarpConfig) -> str:
    """Return the configuration as the TOML file that `load_kept_config` reads: its last line says that it is whole."""
    return f"{config_to_toml(config)}\n{LAST_LINE}\n"


def load_kept_config(path: Path) -> WarpConfig:
    """Read a file of `kept_config`. One that was cut short may still be TOML, with defaults for what is missing.

    Raises:
        ConfigError: its last line is missing, or as for `load_config`.
    """
    text = _text_of(path)
    if not text.rstrip().endswith(LAST_LINE):
        raise ConfigError(f"{path} was cut short: its last line, {LAST_LINE!r}, is missing: put the whole file back")
    return config_from_mapping(_parsed(path, text))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5000 digits, for one
        raise ConfigError(f"{path} is not valid TOML: {str(error)[:200]}") from error


def _text_of(path: Path) -> str:
    try:
        if path.is_fifo():
            raise ValueError("it is a pipe, which would hang")
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)  # and no further: a device may have no end
        if len(raw) > LARGEST_BYTES:
            raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")
        return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig").read()  # line ends of every system
    except (OSError, ValueError) as error:  # a ValueError also where it is not UTF-8, or the path has a NUL
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}") from error


def _apply(mapping: dict[str, Any], override: str) -> None:
    match = re.fullmatch(r"([a-z_]+)\.([a-z_]+)=(.*)", override, flags=re.DOTALL)
    if not match:
        raise ConfigError(f"--set {override[:80]!r}: expected section.field=value, such as training.steps=50")
    section, name, text = match.groups()
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {override[:80]!r}: {str(error)[:200]}") from error
    part = mapping.setdefault(section, {})
    if not isinstance(part, dict):
        raise ConfigError(f"--set {override[:80]!r}: {section} is not a table")
    part[name] = value


def config_to_mapping(config: WarpConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON types, every field filled in."""
    mapping: dict[str, Any] = TypeAdapter(WarpConfig).dump_python(config, mode="json")
    return mapping


def config_to_toml(config: WarpConfig) -> str:
    """Return the configuration as TOML, every field filled in."""
    mapping = config_to_mapping(config)
    lines: list[str] = []
    for name, part in mapping.items():
        if isinstance(part, dict):
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in part.items()), ""]
    for run in mapping["runs"]:
        lines.append("[[runs]]")
        lines += [f"{section} = {_toml(run[section])}" for section in ("reward", "training") if run[section]]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # Not the ASCII form: JSON writes what lies beyond 16 bits as two surrogates, which TOML refuses.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration."""
    return TypeAdapter(WarpConfig).json_schema()


def docs_table() -> str:
    """Return the configuration's reference in Markdown, one table per section."""
    lines = ["# Configuration", "", "Made by `python -m warp_core.training.config`; a test keeps it true.", ""]
    for name, section in {**SECTIONS, "[runs]": RunOverride}.items():
        lines += [
            f"## `[{name}]`",
            "",
            inspect.getdoc(section) or "",
            "",
            "| field | default | meaning |",
            "|---|---|---|",
        ]
        helps = _help_texts(section)
        for one in dataclasses.fields(section):
            default = one.default if one.default is not dataclasses.MISSING else {}
            lines.append(f"| `{one.name}` | `{_toml(default)}` | {_choices(section, one.name)}{helps[one.name]} |")
        lines.append("")
    return "\n".join(lines)


def _help_texts(section: type) -> dict[str, str]:
    """Read the string under each field from the source."""
    found = re.findall(r'^    (\w+): .*?\n    """(.*?)"""', inspect.getsource(section), flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def _choices(section: type, name: str) -> str:
    hint = get_type_hints(section)[name]
    return f"One of {', '.join(get_args(hint))}. " if get_origin(hint) is Literal else ""


if __name__ == "__main__":
    print(docs_table(), end="")
