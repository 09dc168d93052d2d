"""Where the files that ship with the project lie: `assets/` beside the package."""

from pathlib import Path

from warp_core.errors import EnvironmentProblem

__all__ = ["assets_root"]


def assets_root() -> Path:
    """Return the folder of prompts, the bundled reward model and the demo run.

    Raises:
        EnvironmentProblem: the package was installed without it.
    """
    root = Path(__file__).resolve().parents[2] / "assets"
    if not root.is_dir():
        raise EnvironmentProblem(f"no assets folder at {root}: install from a clone with `pip install -e .`")
    return root
