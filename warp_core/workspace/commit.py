"""Which code made a result."""

import subprocess
from collections.abc import Sequence

from warp_core.workspace.assets import assets_root

__all__ = ["commit_here"]


def commit_here(*, apart_from: Sequence[str] = ()) -> str:
    """Return the commit of the project, with `+` where files differ from it; empty outside a git repository.

    apart_from: files, from the top of the project, that may differ: what the results themselves are written to.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=assets_root().parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    left = [f":(exclude){path}" for path in apart_from]
    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", *left)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except OSError:  # no git on this machine
        return ""
