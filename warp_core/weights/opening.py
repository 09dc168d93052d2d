"""Open checkpoints by the names that a user gives: a folder, a Hub id, or the embedded model."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warp_core.weights.checkpoints import Checkpoint, adapter_base_name, open_checkpoint
from warp_core.workspace.sources import resolve_model

__all__ = ["open_all", "open_model"]


def open_model(name: str, *, base: str | None = None) -> Checkpoint:
    """Open a checkpoint named by a folder, a Hub id or `smollm2-135m`; an adapter's base is found by its name.

    Args:
        name: the checkpoint.
        base: the base model of an adapter, where it is not where the adapter says.

    Raises:
        CheckpointError: nothing there, or not usable; for an adapter also its base.
    """
    folder: Path = resolve_model(name)
    wanted = adapter_base_name(folder)
    if wanted is None:
        return open_checkpoint(folder)
    return open_checkpoint(folder, base=resolve_model(base or wanted) if base or wanted else None)


def open_all(init: str, policies: Sequence[str], *, base: str | None = None) -> tuple[Checkpoint, list[Checkpoint]]:
    """Open an init and its policies. The base of an adapter is `base`, or the folder it names, or else the init's.

    Raises:
        CheckpointError: as `open_model` does.
    """
    opened = open_model(init, base=base)
    # Side by side, because most of the time goes into hashing files that are not known yet.
    with ThreadPoolExecutor(max_workers=max(1, len(policies))) as pool:
        return opened, list(pool.map(lambda name: _open_policy(name, base=base, default=opened.full.path), policies))


def _open_policy(name: str, *, base: str | None, default: Path) -> Checkpoint:
    named = adapter_base_name(Path(name).expanduser()) if _is_folder(name) else None
    # An adapter made on another machine names a folder that is not here; one that is here is what it was made over.
    lost = named is not None and not _is_folder(named)
    return open_model(name, base=base or (str(default) if lost else None))


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name that is too long; ~someone who is not known here
        return False
