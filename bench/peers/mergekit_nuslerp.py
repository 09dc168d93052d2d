"""A SLERP of the task vectors of two policies by mergekit, as its command line does it.

    PYTHON bench/peers/mergekit_nuslerp.py INIT POLICY POLICY OUT ARITHMETIC OUTPUT

ARITHMETIC is the dtype of the computation, OUTPUT that of the files, as mergekit calls them (float32, bfloat16).
"""

import sys
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge


def main() -> None:
    """Merge with equal weights, one angle per tensor (mergekit has no other), and write the folder."""
    init, first, second, out, arithmetic, output = sys.argv[1:]
    models = [{"model": str(Path(policy)), "parameters": {"weight": 0.5}} for policy in (first, second)]
    config = {"merge_method": "nuslerp", "base_model": init, "models": models, "dtype": arithmetic}
    if output != arithmetic:
        config["out_dtype"] = output
    run_merge(MergeConfiguration.model_validate(config), out, MergeOptions(quiet=True))


if __name__ == "__main__":
    main()
