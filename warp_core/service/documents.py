"""What the engine answers with: points, geometry, predictions, reports, runs. The requests are in `protocol`.

No torch here: the app imports this module. Times are Unix seconds, sizes bytes, durations seconds, KL nats per
completion.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from warp_core.service.protocol import Finite, Granularity, Model, Place, Share

__all__ = [
    "CheckReport",
    "CheckedModel",
    "ConfigCheck",
    "Curve",
    "Device",
    "EngineStatus",
    "EvaluationNote",
    "Example",
    "ExportReport",
    "FrontDocument",
    "FrontPoint",
    "GeometryDocument",
    "JudgeReport",
    "Metric",
    "Prediction",
    "RunDetail",
    "RunState",
    "RunSummary",
    "SampleRow",
    "StudyClaim",
    "StudyDocument",
    "StudyLine",
    "StudyPanel",
    "StudySummary",
    "Surface",
]


class Metric(Model):
    """A mean over completions and its standard error (None: not known, as with a single prompt)."""

    mean: Finite
    se: Finite | None = None


class FrontPoint(Model):
    """A measured point, ready to be drawn."""

    key: str
    """Unique in the document; `samples(selection, key)` gives its completions."""
    kind: Literal["sft", "policy", "merge", "training"]
    label: str
    place: Place | None = None
    """Where the sliders have to be for this model; None for a moment of a training run, and for another granularity
    than the run merges with (layer where there is no run)."""
    iteration: int | None = None
    policy: int | None = None
    """1-based, for kinds policy and training."""
    step: int | None = None
    n: int = 0
    evaluation: str
    """Id of how it was measured; points with different ones do not compare."""
    metrics: dict[str, Metric]
    """reward, kl, length, diversity where known, and `reward:NAME` for every part of the reward."""
    dominated: bool = False
    """Another point of the same evaluation has no more KL and no less reward."""


class EvaluationNote(Model):
    """How points were measured, in words."""

    id: str
    label: str
    """E.g. `64 prompts x 2, 20 tokens, exact KL, seed 1234`."""
    is_default: bool
    """What `measure` uses unless the request says otherwise."""


class FrontDocument(Model):
    """All points of a selection: what the explorer draws."""

    revision: str
    """Changes when any point does."""
    points: tuple[FrontPoint, ...]
    evaluations: tuple[EvaluationNote, ...]
    hypervolume: Finite | None = None
    reference: tuple[Finite, Finite] | None = None
    """(KL, reward) that the hypervolume is to."""


class GeometryDocument(Model):
    """Inner products of one iteration's task vectors, and what derives from them.

    L layers, M policies, K = M columns, or M + 1 where the SFT policy is not the init: then the last column is
    delta_sft = theta_sft - theta_init, so that every place is theta_init + sum_k c_k delta_k.
    """

    iteration: int
    granularity: Granularity
    layers: tuple[str, ...]
    num_params: tuple[int, ...]
    policies: tuple[str, ...]
    """M names."""
    has_sft_column: bool
    gram_LKK: tuple[tuple[tuple[Finite, ...], ...], ...]
    norms_LM: tuple[tuple[Finite, ...], ...]
    angles_deg_LMM: tuple[tuple[tuple[Finite, ...], ...], ...]
    cosines_LMM: tuple[tuple[tuple[Finite, ...], ...], ...]
    full_cosines_LMM: tuple[tuple[tuple[Finite, ...], ...], ...] | None = None
    """Cosines of the full weights; None where theta_init was not at hand."""


class Surface(Model):
    """One metric of a `Prediction`."""

    beta: tuple[Finite, ...]
    alpha: tuple[Finite, ...]
    lengthscale: Finite
    loo_rmse: Finite | None = None


class Prediction(Model):
    """A surface through the measured points of one iteration, for the curve and the marker between them.

    P measured points with coefficients c_PLK. Squared distance of two models in weight space, relative to the mean
    squared length of the task vectors: d2(a, b) = sum_l (a_l - b_l)^T G_l (a_l - b_l) / scale. For each metric

        f(c) = sum_b beta_b h_b(c) + sum_p alpha_p exp(-d2(c, c_p) / (2 lengthscale^2)),
        h = [1, u, u^2], u = sqrt(d2(c, c_sft))

    (kriging with a trend; Rasmussen and Williams 2006, section 2.7). `loo_rmse`: root mean square error when each
    measured point is predicted from the others.
    """

    iteration: int
    scale: Finite
    sft_LK: tuple[tuple[Finite, ...], ...]
    """Coefficients of the SFT policy."""
    points_PLK: tuple[tuple[tuple[Finite, ...], ...], ...]
    keys: tuple[str, ...]
    """P keys of front points."""
    surfaces: dict[str, Surface]


class CheckedModel(Model):
    """One checkpoint of a selection."""

    role: Literal["init", "policy", "sft"]
    name: str
    id: str
    kind: Literal["full", "adapter"]
    num_params: int
    size_bytes: int
    dtype: str


class CheckReport(Model):
    """Whether a selection can be explored."""

    ok: bool
    problems: tuple[str, ...]
    models: tuple[CheckedModel, ...]
    needed_bytes: int
    """Estimate of what exploring it takes in the engine."""
    available_bytes: int
    device: str


class ExportReport(Model):
    """What was written, and whether it is what was seen."""

    out: str
    recipe: dict[str, Any]
    num_params: int
    size_bytes: int
    wall_s: Finite
    files: tuple[str, ...]
    verified: bool | None
    """None: not asked for."""
    max_difference: Finite | None = None
    """Largest absolute difference between a parameter of the reloaded folder and the model in memory."""
    rounded: tuple[str, str] | None = None
    """(dtype that previews compute in, dtype of the files), where the weights that were seen are rounded to it."""
    completions: tuple[tuple[str, str, str], ...] = ()
    """(prompt, greedy completion of the model in memory, of the reloaded folder)."""
    snippet_transformers: str
    snippet_vllm: str


class JudgeReport(Model):
    """Scores of stored completions by a judge: rows in the order of `samples(key)`."""

    judge: str
    scores: dict[str, tuple[Finite, ...]]
    """By key of a front point."""


class SampleRow(Model):
    """A stored completion."""

    prompt: str
    completion: str
    reward: Finite
    rewards: dict[str, Finite] = Field(default_factory=dict)
    kl: Finite
    num_tokens: int


class RunState(StrEnum):
    """Of a training run."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """Stopped or killed; can be resumed."""
    FAILED = "failed"


class RunSummary(Model):
    """A run in the list."""

    name: str
    state: RunState
    model: str
    policies: int
    iterations: int
    finished_iterations: int
    progress: Share
    seconds_left: Finite | None = None
    message: str = ""
    """E.g. `iteration 1, policy 2, step 14 of 40`."""
    error: str | None = None
    started_at: Finite | None = None
    is_bundled: bool = False


class RunDetail(Model):
    """A run with its configuration."""

    summary: RunSummary
    config: dict[str, Any]
    toml: str
    path: str


class Example(Model):
    """A completion that was sampled while training."""

    step: int
    prompt: str
    completion: str
    reward: Finite | None = None


class Curve(Model):
    """The metrics of one RL run, one entry per step: S steps."""

    iteration: int
    policy: int
    step_S: tuple[int, ...]
    metrics: dict[str, tuple[Finite | None, ...]]
    """reward, kl_anchor, length (mean tokens of a completion), entropy, tokens_per_s (sampled tokens per second of the
    whole step: sampling, reward, anchor and update), grad_norm, learning_rate, sampling_gap, `reward:NAME`."""
    example: Example | None = None
    """A completion of the latest step, where one was kept."""


class ConfigCheck(Model):
    """A configuration that was looked at."""

    ok: bool
    problems: tuple[str, ...]
    """One line each, naming the field."""
    toml: str
    config: dict[str, Any]
    """With every default filled in; as given where it is not ok."""


class StudySummary(Model):
    """A study of the paper that was made here, or came with the project."""

    name: str
    scale: str
    title: str
    figure: str
    """Of the paper."""
    observation: str
    """What was tested."""
    verdict: Literal["held", "failed", "undecided"]
    sentence: str
    """The verdict with its numbers."""
    is_complete: bool
    date: str


class StudyClaim(Model):
    """One thing that a study tested; those that do not count are told beside the observation."""

    verdict: Literal["held", "failed", "undecided"]
    sentence: str
    counts: bool


class StudyLine(Model):
    """A line of a plot, P points in order."""

    name: str
    color: str = Field(pattern=r"^#[0-9a-f]{6}$")
    dash: Literal["solid", "dot", "dash", "dashdot", "longdash", "longdashdot"] = "solid"
    x_P: tuple[Finite, ...]
    y_P: tuple[Finite, ...]
    y_se_P: tuple[Finite, ...] = ()
    """Standard errors, or nothing."""
    notes_P: tuple[str, ...] = ()
    in_legend: bool = True


class StudyPanel(Model):
    """A pair of axes with lines."""

    x_label: str
    y_label: str
    lines: tuple[StudyLine, ...]


class StudyDocument(Model):
    """All of a study."""

    summary: StudySummary
    claims: tuple[StudyClaim, ...]
    judge: tuple[StudyClaim, ...]
    """What the second judge says about the reward that was gained."""
    panels: tuple[StudyPanel, ...]
    made: str
    """How it was made, in words."""
    folder: str
    """Where its files lie, on the engine's machine."""
    files: tuple[str, ...]


class Device(Model):
    """A device of the engine."""

    name: str
    total_bytes: int
    free_bytes: int


class EngineStatus(Model):
    """The engine at a glance."""

    version: str
    pid: int
    started_at: Finite
    workspace: str
    devices: tuple[Device, ...]
    loaded: tuple[str, ...]
    """Selections whose models are in memory, in words."""
    memory_bytes: int
    """Of the engine's process."""
    queued: int
    running: int
