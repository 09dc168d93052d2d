"""The engine's token: from the environment, from a file, or into one."""

import os
from pathlib import Path

from warp_core.errors import ConfigError
from warp_core.workspace.paths import cache_root

__all__ = ["TOKEN_VARIABLE", "given_token", "token_path", "write_token"]

TOKEN_VARIABLE = "WARP_ENGINE_TOKEN"


def given_token(file: str | None) -> str | None:
    """Return the token of $WARP_ENGINE_TOKEN, else of the file; None where neither is given.

    Raises:
        ConfigError: the file cannot be read or holds no token.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token and file is not None:
        try:
            token = Path(file).expanduser().read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
            raise ConfigError(
                f"--token-file {file}: {reason}: give a file that holds the token and nothing else"
            ) from error
        if not token or any(not c.isprintable() or c == " " for c in token):
            raise ConfigError(f"--token-file {file}: it holds no token: one line without spaces")
    return token or None


def token_path(port: int) -> Path:
    """Where the token of the engine on a port is written."""
    return cache_root() / f"engine-{port}.token"


def write_token(token: str, port: int) -> Path:
    """Write the token of the engine on a port where only this user reads it; return the file."""
    path = token_path(port)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of an engine that was killed; whatever its permissions are
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return path
