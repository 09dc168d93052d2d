"""Settings of the process that must stand before torch is imported."""

import os

__all__ = ["quiet_threads"]


def quiet_threads() -> None:
    """Let OpenMP's idle threads sleep, and keep libraries from drawing bars and calling home.

    With OpenMP's default spinning, generation on shared cores fell from 5 s to 77 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
