"""Settings of every test: quiet threads, no network, and slow tests only on request (--run-slow)."""

import os
import signal

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads make two busy cores crawl
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()
# A shell starts what runs in the background with SIGINT ignored, and tests of Ctrl-C would test nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same for what nohup starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    # peft 0.21 itself reads this deprecated property of transformers 5.23; nothing of ours does.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reruns = {Path(__file__).parent / "browser": 2, Path(__file__).parent / "hostile": 1}
    for item in items:
        for folder, count in reruns.items():
            if item.path.is_relative_to(folder):
                # On a busy machine a deadline is missed now and then; pytest's summary names what ran again.
                item.add_marker(pytest.mark.flaky(reruns=count))
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --run-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
