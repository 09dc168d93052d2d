"""Settings of the process that must stand before torch is imported."""

import os

__all__ = ["QUIET_THREADS", "quiet_threads"]

# OpenMP's idle threads sleep, after spinning for about 0.1 ms: that GNU's OpenMP (torch's on Linux) counts in rounds.
# Without a spin at all a step of decoding, hundreds of products of 0.1 ms, wakes a thread for each: 1.5 to 1.7 times.
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}


def quiet_threads() -> None:
    """Let OpenMP's idle threads sleep, use large pages, and keep libraries from drawing bars and calling home.

    With OpenMP's default spinning, generation on shared cores fell from 5 s to 77 s. A training step takes and returns
    gigabytes: with pages of 4 KB that was 390,000 page faults for one gradient of SmolLM2, with 2 MB 40,000. Whoever
    sets OpenMP's waiting in the environment keeps it.
    """
    if not any(name in os.environ for name in QUIET_THREADS):
        os.environ.update(QUIET_THREADS)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
