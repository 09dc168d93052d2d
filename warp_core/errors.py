"""Every error that warp_core raises on purpose.

    WarpError                       a fault of ours unless it is a UserError: exit code 1
      UserError (ValueError)        the user's mistake: exit code 2, one line, no traceback
        CheckpointError             a model folder is missing, incomplete or unsafe
          MismatchError             checkpoints that do not belong together
          NonFiniteError            NaN or infinity in a tensor
        GeometryError               a path between task vectors is undefined
        RecipeError                 weights, eta or method make no sense
        ConfigError                 a configuration value
        RewardError                 a reward model or function misbehaved
        PromptError                 a prompt file is missing or empty
        WorkspaceError              an output folder exists, a run is missing
        EnvironmentProblem          something is missing on this machine (network, package)
        UnknownJobError             a job that the engine does not know, or no longer
      EngineUnreachableError        nobody answers at the engine's address, or not in time
      DivergedError                 training met a non-finite loss, gradient or weight

A message says what happened, where (path, tensor, field, value) and what to do.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "EngineUnreachableError",
    "EnvironmentProblem",
    "GeometryError",
    "MismatchError",
    "NonFiniteError",
    "PromptError",
    "RecipeError",
    "RewardError",
    "UnknownJobError",
    "UserError",
    "WarpError",
    "WorkspaceError",
]


class WarpError(Exception):
    """Base of all errors of this package."""


class UserError(WarpError, ValueError):
    """A mistake that the user can mend; the command line answers with exit code 2."""


class CheckpointError(UserError):
    """A model folder is missing, incomplete, unsafe or of an unknown format."""


class MismatchError(CheckpointError):
    """Checkpoints that cannot be mixed; the message names the tensor or field that differs."""


class NonFiniteError(CheckpointError):
    """NaN or infinity in a checkpoint; the message names the tensor."""


class GeometryError(UserError):
    """The merge path is undefined, e.g. opposite task vectors; the message names the layer."""


class RecipeError(UserError):
    """A merge recipe is not valid."""


class ConfigError(UserError):
    """A configuration file or value is not valid; the message names the field."""


class RewardError(UserError):
    """A reward is unknown, or returned something other than one finite number per completion."""


class PromptError(UserError):
    """A prompt file is missing, empty or not text."""


class WorkspaceError(UserError):
    """A run or an output folder is missing, taken or not ours."""


class EnvironmentProblem(UserError):  # noqa: N818 - "problem" says whose it is: the machine's
    """Something that this machine lacks, e.g. a network or a package."""


class UnknownJobError(UserError):
    """A job that the engine does not know: it was restarted, or the job ended long ago."""


class EngineUnreachableError(WarpError):
    """The engine does not answer: it is not running, is being restarted, or the network is down."""


class DivergedError(WarpError):
    """Training met a number that is not finite; the last good state is intact on disk."""
