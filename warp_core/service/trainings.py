"""Training as processes of their own: started here, outliving the engine, found again by what they leave on disk.

    WORKSPACE/.training/NAME/
      config.toml       what the run was started with
      process.json      process id and start time
      log.txt           what it printed; its last line says why it ended

The child is `warp-core train`, as a person would start it: in a session of its own, a little lower in priority than the
engine, so that sliders stay alive beside it.
"""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from warp_core.errors import WorkspaceError
from warp_core.service.documents import RunState, RunSummary
from warp_core.training.config import WarpConfig, config_from_mapping, config_to_mapping, kept_config, load_kept_config
from warp_core.workspace.paths import require_run_name, run_path, safe_name
from warp_core.workspace.publish import write_json_atomic, write_text_atomic
from warp_core.workspace.reading import read_regular
from warp_core.workspace.runs import RunFolder

__all__ = ["Trainings"]

FOLDER = ".training"
LOG_TAIL_BYTES = 20_000
PREFIX = "warp-core: "
INTERRUPTED = "interrupted"
SILENT = "it ended without a word: it was killed, perhaps for want of memory"
NICENESS = "5"


class Trainings:
    """Starts, stops and finds training processes.

    Args:
        workspace: the folder of the runs.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a new run.

        Raises:
            ConfigError: the configuration is not valid.
            WorkspaceError: the name is not safe, or taken.
        """
        whole = config_from_mapping(config)
        with self._lock:
            out = run_path(name, root=self._workspace)
            require_run_name(out, root=self._workspace)
            if self._is_alive(name) or RunFolder(out).about_file.exists():
                raise WorkspaceError(f"the run {name!r} exists already: choose another name, or resume it")
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise WorkspaceError(f"{out} is in the way and is no run: choose another name")
            folder = self._folder(name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_text_atomic(folder / "config.toml", kept_config(whole))
                self._spawn(name, folder / "config.toml", out)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)  # what was refused is not listed as begun
                raise

    def resume(self, name: str, run: RunFolder) -> None:
        """Go on with a run that stands still.

        Raises:
            WorkspaceError: it is being trained already.
        """
        with self._lock:
            if self._is_alive(name) or run.trainer() is not None:
                raise WorkspaceError(f"the run {name!r} is being trained already")
            self._folder(name).mkdir(parents=True, exist_ok=True)
            self._spawn(name, run.config_file, run.path, "--resume")

    def start_again(self, name: str) -> None:
        """Start a run that ended before it had a folder of its own, with the configuration it was given.

        Raises:
            WorkspaceError: there is none of that name.
        """
        self.start(name, config_to_mapping(self._started(name)))

    def stop(self, name: str, run: RunFolder | None) -> None:
        """Ask for the end after the present step; a second time: at once. What is done is kept.

        Raises:
            WorkspaceError: it is not being trained.
        """
        pid = run.trainer() if run is not None else None
        with self._lock:
            child = self._process(name)
        if child is not None:
            pid = child.pid
        if pid is None:
            raise WorkspaceError(f"the run {name[:100]!r} is not being trained")
        try:
            psutil.Process(pid).send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as error:
            raise WorkspaceError(
                f"the run {name!r} is trained by another user's process {pid}: stop it there"
            ) from error

    def close(self) -> None:
        """Let go of the processes; they go on."""
        with self._lock:
            for child in self._children.values():
                if child.poll() is None:
                    # Popen complains about a child that was neither waited for nor let go; this says it is meant.
                    child.returncode = 0
            self._children.clear()

    def names(self) -> list[str]:
        """Names of what was started here and has no run folder yet."""
        with self._lock:
            self._collect()
        if not self._root.is_dir():
            return []
        found = sorted(folder.name for folder in self._root.iterdir() if (folder / "config.toml").is_file())
        return [name for name in found if not RunFolder(self._workspace / name).about_file.exists()]

    def state_of(self, name: str, run: RunFolder) -> tuple[RunState, str | None]:
        """Return the state of an unfinished run, and why it failed."""
        with self._lock:
            if self._is_alive(name) or run.trainer() is not None:
                return RunState.RUNNING, None
        return self._how_it_ended(name)

    def summary_of_start(self, name: str) -> RunSummary:
        """Describe a run that has no folder yet: it is being prepared, or it failed at that.

        Raises:
            WorkspaceError: nothing of that name was started.
        """
        config = self._started(name)
        with self._lock:
            alive = self._is_alive(name)
        state, error = (RunState.RUNNING, None) if alive else self._how_it_ended(name)
        try:
            started = (self._folder(name) / "config.toml").stat().st_mtime
        except OSError as gone:  # removed since it was read
            raise self._unknown(name) from gone
        return RunSummary(
            name=name,
            state=state,
            model=config.model.name,
            policies=config.warp.policies,
            iterations=config.warp.iterations,
            finished_iterations=0,
            progress=0.0,
            message="opening the model, the prompts and the rewards" if alive else "ended before its first step",
            error=error,
            started_at=started,
        )

    @property
    def _root(self) -> Path:
        return self._workspace / FOLDER

    def _folder(self, name: str) -> Path:
        return self._root / safe_name(name)

    def _started(self, name: str) -> WarpConfig:
        file = self._folder(name) / "config.toml"
        if not file.is_file():
            raise self._unknown(name)
        return load_kept_config(file)

    def _unknown(self, name: str) -> WorkspaceError:
        return WorkspaceError(f"no run called {name!r} in {self._workspace}")

    def _spawn(self, name: str, config: Path, out: Path, *options: str) -> None:
        command = [sys.executable, "-m", "warp_core", "train", str(config), "--out", str(out), *options]
        nice = shutil.which("nice")
        if nice:
            command = [nice, "-n", NICENESS, *command]
        folder = self._folder(name)
        with (folder / "log.txt").open("wb") as log:
            # A session of its own: what ends the engine, Ctrl-C in its terminal too, does not end the training.
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._children[name] = child
        # Its end is collected when it comes, whether anybody looks then or not: no zombie is left.
        threading.Thread(target=child.wait, name=f"end of {name}", daemon=True).start()
        try:
            born = psutil.Process(child.pid).create_time()
        except psutil.NoSuchProcess:
            born = time.time()
        try:
            write_json_atomic(folder / "process.json", {"pid": child.pid, "born": born})
        except BaseException:
            # Another engine could not find it.
            del self._children[name]
            child.kill()
            child.wait()
            raise

    def _is_alive(self, name: str) -> bool:
        return self._process(name) is not None

    def _process(self, name: str) -> psutil.Process | None:
        """Return the living process that was started for a run, by this engine or an earlier one."""
        self._collect()
        try:
            record = json.loads(read_regular(self._folder(name) / "process.json"))
            process = psutil.Process(int(record["pid"]))
            # Ids are used again; together with the time of birth they are not.
            is_ours = abs(process.create_time() - float(record["born"])) < 1.0
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, psutil.Error):
            return None

    def _collect(self) -> None:
        """Let go of the processes that have ended."""
        self._children = {name: child for name, child in self._children.items() if child.poll() is None}

    def _how_it_ended(self, name: str) -> tuple[RunState, str | None]:
        """Read the last words of the process: an error, or that it was interrupted, or nothing."""
        log = self._folder(name) / "log.txt"
        said = _last_words(log)
        if said is None:
            return RunState.STOPPED, SILENT if log.exists() else None
        return (RunState.STOPPED, None) if said.startswith(INTERRUPTED) else (RunState.FAILED, said)


def _last_words(log: Path) -> str | None:
    """Return what the command line said as its last line, without the program's name; None if it was not its own."""
    if not log.is_file():
        return None
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.removeprefix(PREFIX) if last.startswith(PREFIX) else None
