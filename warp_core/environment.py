"""Settings of the process that must stand before torch is imported."""

import os

__all__ = ["quiet_threads"]


def quiet_threads() -> None:
    """Let OpenMP's idle threads sleep, use large pages, and keep libraries from drawing bars and calling home.

    With OpenMP's default spinning, generation on shared cores fell from 5 s to 77 s. A training step takes and returns
    gigabytes: with pages of 4 KB that was 390,000 page faults for one gradient of SmolLM2, with 2 MB 40,000.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
