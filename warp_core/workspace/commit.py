"""Which code made a result."""

import subprocess

from warp_core.workspace.assets import assets_root

__all__ = ["commit_here"]


def commit_here() -> str:
    """Return the commit of the project, with `+` where files differ from it; empty outside a git repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=assets_root().parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except OSError:  # no git on this machine
        return ""
