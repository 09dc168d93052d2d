"""What every bench is given: how long it may take, threads, folders, the peers' Python, the limits of the machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from warp_core.environment import QUIET_THREADS

__all__ = ["Settings", "read_settings", "settings_json"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a bench may use.

    Attributes:
        quick: a smoke test: seconds for the whole bench, numbers that mean little.
        threads: of torch and OpenMP, for us and for the peers.
        scratch: a folder for inputs (kept between runs, see models.py) and outputs (remove yours).
        peer_python: the Python of the peers' environment; None leaves the peers out.
        smollm2: folder of SmolLM2-135M-Instruct, float32 safetensors.
        limits: what limits.py has measured in this run, such as `copy_gb_s`; empty where it was left out. Take a rate
            with `limits.get(NAME)` and leave the ratio None where it is missing.
    """

    quick: bool
    threads: int
    scratch: Path
    peer_python: Path | None
    smollm2: Path
    limits: Mapping[str, float] = field(default_factory=dict)

    def environment(self, *, peer: bool = False) -> dict[str, str]:
        """Return the environment for a process of ours or of a peer.

        Both get the same threads and no network. Idle threads of ours sleep (as `warp_core.environment` has it); a peer
        keeps OpenMP's default, with which it is faster on a quiet machine.
        """
        threads = str(self.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
        if peer:
            for name in (*QUIET_THREADS, "PYTHONPATH"):
                environment.pop(name, None)
        else:
            environment |= QUIET_THREADS
        return environment


_SETTINGS: TypeAdapter[Settings] = TypeAdapter(Settings)


def settings_json(settings: Settings) -> bytes:
    """Return the settings as JSON, for the process of a bench."""
    return _SETTINGS.dump_json(settings, indent=1)


def read_settings(text: str | bytes) -> Settings:
    """Return the settings that a JSON text holds. Raises pydantic.ValidationError where it holds something else."""
    return _SETTINGS.validate_json(text)
