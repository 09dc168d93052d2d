"""What is asked of the engine: one pydantic model per message, JSON on the wire. The answers are in `documents`.

No torch here: the app imports this module. Times are Unix seconds, sizes bytes, durations seconds, KL nats per
completion. Unknown fields are refused in requests, so that a misspelt one is not silently ignored.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "SFT",
    "CheckRequest",
    "Completion",
    "ExportRequest",
    "Failure",
    "Finite",
    "GeometryRequest",
    "Granularity",
    "Job",
    "JobKind",
    "JobRequest",
    "JobState",
    "JudgeRequest",
    "MeasureRequest",
    "Method",
    "Model",
    "Name",
    "Pane",
    "PaneRequest",
    "PaneState",
    "Place",
    "PrepareRequest",
    "PreviewRequest",
    "Selection",
    "Session",
    "Share",
    "TrainRequest",
    "Vote",
]

Name = Annotated[str, Field(min_length=1, max_length=400)]
Session = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Method = Literal["slerp", "lerp", "slerp-weights"]
Granularity = Literal["layer", "tensor", "model"]
JobKind = Literal["preview", "measure", "prepare", "check", "geometry", "export", "judge"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Model(BaseModel):
    """Base of all messages: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Selection(Model):
    """The checkpoints to work with: a run of the workspace, or any init and policies."""

    run: Name | None = None
    """Name of a run, as `runs()` lists it. Then `init` and `policies` are empty."""
    init: Name | None = None
    """Folder, Hub id or smollm2-135m."""
    policies: tuple[Name, ...] = Field(default=(), max_length=16)
    base: Name | None = None
    """Base model of adapters, where it is neither the folder they name nor `init`."""


class Place(Model):
    """A position of the sliders: a merged model, relative to a selection.

    theta_slerp = SLERP or LERP of the policies with `weights`; LITI with `eta` from the SFT policy (`towards` "sft") or
    from the iteration's own init ("init"; the same in iteration 1). A single policy m is method lerp with all weight on
    m, eta 1, towards init; the SFT policy is eta 0 towards sft, see `SFT`.
    """

    iteration: Annotated[int, Field(ge=1, le=1000)] = 1
    """Of the run; 1 where init and policies were given."""
    method: Method = "slerp"
    weights: tuple[Share, ...] = Field(default=(), max_length=16)
    """One per policy, adding up to 1; empty: all alike."""
    eta: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    towards: Literal["sft", "init"] = "sft"


SFT = Place(eta=0.0)


class JobState(StrEnum):
    """States of a job. A preview that a newer one of its session replaced is cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Completion(Model):
    """A completion as far as it has been sampled."""

    text: str
    num_tokens: int
    done: bool
    reward: Finite | None = None
    rewards: dict[str, Finite] = Field(default_factory=dict)
    kl: Finite | None = None


class PaneRequest(Model):
    """One model to sample from, beside others."""

    id: Annotated[str, Field(max_length=40)]
    place: Place


PaneState = Literal["waiting", "merging", "sampling", "scoring", "done"]


class Pane(Model):
    """The token buffer of one model in a preview."""

    id: str
    place: Place
    state: PaneState
    completions: tuple[Completion, ...] = ()


class PreviewRequest(Model):
    """Merge and sample: latest wins per session. Three panes share prompt, seeds and batch."""

    kind: Literal["preview"] = "preview"
    session: Session
    selection: Selection
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    panes: tuple[PaneRequest, ...] = Field(min_length=1, max_length=6)
    chat_template: bool = False
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    num_completions: Annotated[int, Field(ge=1, le=8)] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 24
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 0.9
    score: bool = True
    """Also reward (the run's, or `reward`) and KL of each completion."""
    reward: tuple[Name, ...] = ()
    """Reward terms where the selection is no run; empty: sentiment."""


class MeasureRequest(Model):
    """Evaluate a point (one place), or sweep a front (many); stored points come at once."""

    kind: Literal["measure"] = "measure"
    session: Session
    selection: Selection
    places: tuple[Place, ...] = Field(min_length=1, max_length=500)
    num_prompts: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """None: as the run is configured (32 where there is no run). A smaller number is another evaluation."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=64)] | None = None
    reward: tuple[Name, ...] = ()


class PrepareRequest(Model):
    """Fetch the model where it is missing, open the checkpoints and load them, so that the first preview is quick."""

    kind: Literal["prepare"] = "prepare"
    session: Session
    selection: Selection


class CheckRequest(Model):
    """Can these be mixed, and would they fit in memory?"""

    kind: Literal["check"] = "check"
    session: Session
    selection: Selection


class GeometryRequest(Model):
    """Angles, norms, cosines. Result: `GeometryDocument`."""

    kind: Literal["geometry"] = "geometry"
    session: Session
    selection: Selection
    iteration: Annotated[int, Field(ge=1)] = 1
    granularity: Granularity = "layer"


class ExportRequest(Model):
    """Write a merged model as a folder of the workspace's exports. Result: `ExportReport`."""

    kind: Literal["export"] = "export"
    session: Session
    selection: Selection
    place: Place
    name: Annotated[str, Field(min_length=1, max_length=100)]
    form: Literal["full", "adapter"] = "full"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_shard_size: Annotated[str, Field(max_length=20)] = "5GB"
    verify: bool = True


class JudgeRequest(Model):
    """Score stored completions with other reward terms than they were measured with. Result: `JudgeReport`."""

    kind: Literal["judge"] = "judge"
    session: Session
    selection: Selection
    keys: tuple[str, ...] = Field(min_length=1, max_length=32)
    """Keys of front points."""
    reward: tuple[Name, ...] = Field(min_length=1, max_length=8)


class TrainRequest(Model):
    """Start Algorithm 1 as a process of its own, or resume it. The run is the job: look at `runs()`."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    config: dict[str, Any] | None = None
    """As in the TOML; None resumes the run of that name."""


JobRequest = Annotated[
    PreviewRequest | MeasureRequest | PrepareRequest | CheckRequest | GeometryRequest | ExportRequest | JudgeRequest,
    Field(discriminator="kind"),
]


class Job(Model):
    """Something the engine does or did."""

    id: str
    kind: JobKind
    session: str
    title: str
    """In words: `Measure SLERP at eta 0.3`."""
    state: JobState
    position: int = 0
    """Jobs that come before it in the queue."""
    progress: Share | None = None
    seconds_left: Finite | None = None
    message: str = ""
    """What it is doing right now."""
    error: str | None = None
    """One line: what happened, where, what to do."""
    created_at: Finite
    started_at: Finite | None = None
    ended_at: Finite | None = None
    panes: tuple[Pane, ...] = ()
    timings_s: dict[str, Finite] = Field(default_factory=dict)
    """Seconds since the job was submitted: `started`, `merged`, `first_token`, `sampled`, `scored`."""
    result: dict[str, Any] | None = None
    """By kind: CheckReport, GeometryDocument, ExportReport, JudgeReport as JSON; measure: {"keys": [...]}."""


class Failure(Model):
    """What is answered over HTTP in place of anything else, with a status of 400 or more."""

    error: str
    """One line: what happened, where, what to do."""
    type: str
    """Name of the class in `warp_core.errors`."""


def _on_the_scale(score: float) -> float:
    if abs(score) not in (0.0, 0.5, 1.0, 1.5):
        raise ValueError("a vote is 0, 0.5, 1 or 1.5, or the negative of it")
    return score


class Vote(Model):
    """One judgement of two completions. `score` > 0 prefers the first: 1.5 much, 1 better, 0.5 slightly, 0 tie."""

    id: str = ""
    """Given by the store."""
    time: Finite = 0.0
    session: Session
    prompt: Annotated[str, Field(max_length=20_000)]
    first: Place
    second: Place
    first_text: Annotated[str, Field(max_length=100_000)]
    second_text: Annotated[str, Field(max_length=100_000)]
    score: Annotated[float, AfterValidator(_on_the_scale)]
    blind: bool = False
    source: Literal["side-by-side", "compare"] = "side-by-side"
