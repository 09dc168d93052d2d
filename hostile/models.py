"""Model folders that lie: each is refused by name or is what plain transformers loads; no merge of one is wrong.

What must come of a case stands in the case (`hostile.input_folders.FolderCase.expected`): that `check` names a fault
excuses no merge that goes on with it, unless what is written is right, number for number.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hostile.input_adapters import ADAPTERS, NAMELESS
from hostile.input_child import Found, watched
from hostile.input_folders import CASES
from hostile.input_scene import INDEX, WEIGHTS, FolderCase, Scene
from hostile.outcomes import Outcome, Tally
from tests import tiny
from warp_core.cli import main
from warp_core.errors import CheckpointError, MismatchError
from warp_core.policy.loading import load_checkpoint
from warp_core.policy.model import load_policy
from warp_core.weights import check_checkpoint, open_checkpoint, read_adapter, require_mixable

__all__ = ["attack", "cases"]

ANSWER_S = 60.0
REFUSED_S = 2.0
NOBODY = 65534
HALF = ("--method", "slerp", "--eta", 0.5)
WHOLE = ("--method", "lerp")


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """See hostile/README.md."""
    tallies = {
        "opened": Tally(
            "full models, opened",
            promise="P5",
            holds="as each case says: refused in 2 s in one line that names what is wrong, or what transformers loads",
        ),
        "checked": Tally(
            "full models, checked", promise="P5", holds="a fault is listed by name, what is sound is called sound"
        ),
        "merged": Tally(
            "full models, merged by the command",
            promise="P5",
            holds="exit code 2, one line that names it and no folder; or right: the bits of the model itself at eta 1,"
            " float64 arithmetic half way",
        ),
        "adapters": Tally(
            "adapters",
            promise="P5",
            holds="refused in 2 s in one line that names what is wrong, or equal to what PEFT computes, merged too;"
            " without their base refused, told by `check`, and right over the init",
        ),
        "others": Tally("special folders", promise="P4", holds="zero layers, scalars, unreadable files: as said above"),
        "canary": Tally("code in the folders", promise="P4", holds="the file that the code would make is not there"),
    }
    for found in watched("hostile.models:cases", {"place": str(place), "quick": quick}, answer_s=ANSWER_S):
        if "problem" in found:
            tallies["opened"].check(False, found["problem"])
            continue
        tallies[found["group"]].check(not found["fault"], f"{found['case']}: {found['fault']}")
    for tally in tallies.values():
        yield tally.outcome()


def cases(place: str, quick: bool) -> Iterator[Found]:
    """Go through all cases, in a process of its own."""
    torch.set_num_threads(1)
    root = Path(place)
    canary = root / "canary"
    models = _Models(root)
    # Once first, so that the times below hold no import.
    check_checkpoint(models.policy)
    for number, case in enumerate(CASES):
        scene, folder = models.scene(f"full-{number}", canary, small=quick)
        case.damage(scene)
        yield _found("opened", case, lambda case=case, folder=folder: _open_fault(case, models.init, folder))  # type: ignore[misc]
        yield _found("checked", case, lambda case=case, folder=folder: _check_fault(case, models.init, folder))  # type: ignore[misc]
        yield _found("merged", case, lambda case=case, folder=folder: _merge_fault(case, models.init, folder))  # type: ignore[misc]
        _remove(folder.parent)
    for number, case in enumerate((*ADAPTERS, *NAMELESS)):
        scene, folder = models.adapter_scene(f"adapter-{number}", canary)
        case.damage(scene)
        yield _found("adapters", case, lambda c=case, f=folder: _adapter_fault(c, models.init, f))  # type: ignore[misc]
        yield _found("adapters", case, lambda c=case, f=folder: _adapter_merge_fault(c, models.init, f))  # type: ignore[misc]
        _remove(folder.parent)
    for name, one in _special(root / "special", models).items():
        yield {"group": "others", "case": name} | {"fault": _fault_of(one)}
    yield {"group": "canary", "case": "canary", "fault": "code has run" if canary.exists() else ""}


class _Models:
    """Sound tiny models that cases damage copies of."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.init = tiny.make_model("llama", root / "init", tied=False)
        self.policy = tiny.make_policies(self.init, root, num=1)[0]
        sharded = tiny.make_model("llama", root / "sharded-init", tied=False, max_shard_size=30_000)
        self.sharded = tiny.make_policies(sharded, root, num=1, names=("sharded",))[0]
        self.adapter = tiny.make_adapter(self.init, root / "adapter")

    def scene(self, name: str, canary: Path, *, small: bool) -> tuple[Scene, Path]:
        """A copy of the policy to be damaged."""
        folder = shutil.copytree(self.policy, self.root / name / "policy")
        return Scene(folder=folder, sharded=self.sharded, canary=canary, small=small), folder

    def adapter_scene(self, name: str, canary: Path) -> tuple[Scene, Path]:
        """A copy of the adapter to be damaged."""
        folder = shutil.copytree(self.adapter, self.root / name / "policy")
        return Scene(folder=folder, sharded=self.sharded, canary=canary, small=True), folder


def _found(group: str, case: FolderCase, action: Callable[[], str]) -> Found:
    return {"group": group, "case": f"{case.name} ({group})", "fault": _fault_of(action)}


def _fault_of(action: Callable[[], str]) -> str:
    try:
        return action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _refusal_fault(error: Exception, case: FolderCase, began: float) -> str:
    """What is wrong with a refusal; "" where nothing is."""
    seconds, text = time.process_time() - began, str(error)
    if "\n" in text or len(text) > 1500:
        return f"not one line: {text[:300]!r}"
    if not case.is_named_in(text):
        return f"does not name {case.named!r}: {text}"
    return f"took {seconds:.1f} s" if seconds > REFUSED_S else ""


def _open_fault(case: FolderCase, init: Path, folder: Path) -> str:
    began = time.process_time()
    start = open_checkpoint(init)
    try:
        require_mixable(start, [open_checkpoint(folder)])
    except CheckpointError as error:
        return _refusal_fault(error, case, began) if case.expected == "refused" else f"refused: {error}"
    if case.expected == "refused":
        return "opened and mixable"
    return "" if case.expected == "unmerged" else _loaded_fault(folder)


def _loaded_fault(folder: Path) -> str:
    """Whether what is sampled from is what plain transformers loads."""
    ours = tiny.logits_of(load_policy(folder, device=torch.device("cpu")).model)
    theirs = tiny.logits_of(tiny.load_model(folder))
    return "" if torch.equal(ours, theirs) else "the logits are not those of transformers"


def _check_fault(case: FolderCase, init: Path, folder: Path) -> str:
    problems = check_checkpoint(folder, init=init)
    if case.expected == "loaded":
        return f"called unsound: {problems[0]}" if problems else ""
    if not problems:
        return "called sound"
    broken = [problem for problem in problems if "\n" in problem or len(problem) > 1500]
    if broken:
        return f"not one line: {broken[0][:300]!r}"
    return (
        "" if any(case.is_named_in(problem) for problem in problems) else f"does not name {case.named!r}: {problems[0]}"
    )


def _command(*arguments: Any) -> tuple[int, str]:
    """Run a command in this process; its exit code and what it said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(one) for one in arguments])
    return code, said.getvalue()


def _misuse_fault(code: int, said: str, out: Path, case: FolderCase | None = None) -> str:
    """What is wrong with a refusal of the command; "" where nothing is."""
    if code != 2 or "Traceback" in said:
        return f"exit code {code}: {said[-300:]}"
    last = [line for line in said.splitlines() if line.startswith("warp-core: ")]
    if len(last) != 1:
        return f"not one line: {said[-300:]!r}"
    if case is not None and not case.is_named_in(last[0]):
        return f"does not name {case.named!r}: {last[0]}"
    return "a folder was written" if out.exists() else ""


def _merge_fault(case: FolderCase, init: Path, folder: Path) -> str:
    """Merge the folder alone with the init: refused, or right in every number."""
    whole, half = folder.parent / "whole", folder.parent / "half"
    for out, options in ((whole, WHOLE), (half, HALF)):
        code, said = _command("merge", "--init", init, "--policies", folder, *options, "--out", out)
        if case.expected in ("refused", "unmerged"):
            if fault := _misuse_fault(code, said, out, case):
                return f"{' '.join(map(str, options))}: {fault}"
        elif code:
            return f"exit code {code}: {said[-300:]}"
    if case.expected in ("refused", "unmerged"):
        return ""
    return (
        _same_fault(folder, whole)
        or _half_fault(init, folder, half)
        or _loaded_fault(whole)
        or _logits_fault(folder, whole)
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a full model, as the index says where there is one."""
    if not (folder / INDEX).exists():
        return load_file(folder / WEIGHTS)
    files = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}


def _same_fault(folder: Path, out: Path) -> str:
    """Whether a merge at eta 1 is the policy: every value to the bit, whatever width the init has."""
    given, written = _weights(folder), _weights(out)
    if given.keys() != written.keys():
        return f"other tensors were written: {sorted(given.keys() ^ written.keys())[:3]}"
    wrong = [name for name in given if not torch.equal(given[name].double(), written[name].double())]
    return f"tensor {wrong[0]} is not that of the policy" if wrong else ""


def _half_fault(init: Path, folder: Path, out: Path) -> str:
    """Whether a merge at eta 0.5 lies half way, by float64; a single policy has no angle to another one."""
    first, given, written = _weights(init), _weights(folder), _weights(out)
    if given.keys() != written.keys():
        return f"other tensors were written half way: {sorted(given.keys() ^ written.keys())[:3]}"
    for name, tensor in given.items():
        expected = (first[name].double() + tensor.double()) / 2
        if not torch.allclose(written[name].double(), expected, rtol=1e-6, atol=1e-8):
            return f"tensor {name} is not half way: off by {float((written[name].double() - expected).abs().max()):g}"
    return ""


def _logits_fault(folder: Path, out: Path) -> str:
    one, other = (tiny.logits_of(tiny.load_model(path)) for path in (folder, out))
    return "" if torch.allclose(one, other, atol=1e-3) else "the logits differ"


def _adapter_fault(case: FolderCase, init: Path, folder: Path) -> str:
    began = time.process_time()
    start = open_checkpoint(init)
    try:
        # What names no base that is here must not be given one unasked.
        opened = open_checkpoint(folder, base=None if case.expected == "told" else init)
        require_mixable(start, [opened])
        read_adapter(opened)
    except CheckpointError as error:
        if case.expected == "loaded":
            return f"refused: {error}"
        fault = _refusal_fault(error, case, began)
        return fault or (_adapter_loaded_fault(init, folder) if case.expected == "told" else "")
    return _adapter_loaded_fault(init, folder) if case.expected == "loaded" else "opened and read"


def _adapter_loaded_fault(init: Path, folder: Path) -> str:
    """Whether an adapter over a base that it is given is what PEFT computes."""
    opened = open_checkpoint(folder, base=init)
    ours = tiny.logits_of(load_checkpoint(opened, device=torch.device("cpu")).model)
    return _peft_fault(ours, init, folder)


def _peft_fault(ours: torch.Tensor, init: Path, folder: Path) -> str:
    theirs = tiny.logits_of(tiny.load_model(folder, base=init))
    difference = float((ours - theirs).abs().max())
    return "" if difference < 1e-3 else f"the logits differ from PEFT's by {difference:g}"


def _adapter_merge_fault(case: FolderCase, init: Path, folder: Path) -> str:
    """Merge an adapter by the command, which takes the init for a base that is not where it says."""
    out = folder.parent / "out"
    base = [] if case.expected == "told" else ["--base", init]
    checked, listed = _command("check", folder, *base)
    if (checked == 0) != (case.expected == "loaded"):
        return f"check: exit code {checked}: {listed[-300:]}"
    code, said = _command("merge", "--init", init, "--policies", folder, *base, *WHOLE, "--out", out)
    if case.expected == "refused":
        return _misuse_fault(code, said, out, case)
    if code:
        return f"exit code {code}: {said[-300:]}"
    fault = _peft_fault(tiny.logits_of(tiny.load_model(out)), init, folder)
    return f"merged, {fault}" if fault else ""


def _special(root: Path, models: _Models) -> dict[str, Callable[[], str]]:
    """Cases that need more than a damaged copy."""
    return {
        "no layers at all": lambda: _sound_pair_fault(root / "zero", num_hidden_layers=0),
        "tied embeddings": lambda: _sound_pair_fault(root / "tied", tied=True),
        "bfloat16": lambda: _sound_pair_fault(root / "bf16", dtype=torch.bfloat16),
        "a head stored beside tied embeddings": lambda: _stored_head_fault(root / "head"),
        "scalars in both": lambda: _scalar_fault(root / "scalar"),
        "the same tensor missing in both": lambda: _missing_in_both_fault(root / "missing"),
        "rank larger than the matrix": lambda: _wide_rank_fault(root / "wide", models.init),
        "an adapter over other weights": lambda: _other_base_fault(root / "other", models),
        "an adapter as base": lambda: _nested_base_fault(models),
        "files that this user may not read": lambda: _unreadable_fault(models.policy),
        "a generation config that is a list": lambda: _generation_fault(root / "generation", models.policy),
    }


def _sound_pair_fault(root: Path, **model: Any) -> str:
    init = tiny.make_model("llama", root / "init", **model)
    policy = tiny.make_policies(init, root, num=1)[0]
    problems = check_checkpoint(policy, init=init)
    if problems:
        return f"called unsound: {problems[0]}"
    code, said = _command("merge", "--init", init, "--policies", policy, "--out", root / "out")
    if code:
        return f"exit code {code}: {said[-300:]}"
    return _same_fault(policy, root / "out") or _logits_fault(policy, root / "out")


def _stored_head_fault(root: Path) -> str:
    init = tiny.make_model("llama", root / "init", tied=True)
    policy = tiny.make_policies(init, root, num=1)[0]
    scene = Scene(folder=policy, sharded=policy, canary=root / "canary", small=True)
    scene.tensors(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    code, said = _command("merge", "--init", init, "--policies", policy, "--out", root / "out")
    if code:
        return f"an equal head was refused: {said[-300:]}"
    fault = _logits_fault(policy, root / "out")
    scene.tensors(lambda tensors: tensors["lm_head.weight"][0].add_(1))
    code, said = _command("merge", "--init", init, "--policies", policy, "--out", root / "out2")
    case = FolderCase(damage=_stored_head_fault, expected="refused", named="lm_head.weight")  # type: ignore[arg-type]
    return fault or _misuse_fault(code, said, root / "out2", case)


def _scalar_fault(root: Path) -> str:
    init = tiny.make_model("llama", root / "init")
    policy = tiny.make_policies(init, root, num=1)[0]
    for number, folder in enumerate((init, policy)):
        scene = Scene(folder=folder, sharded=folder, canary=root / "canary", small=True)
        scene.tensors(lambda tensors, n=number: tensors.update({"logit_scale": torch.tensor(1.0 + n)}))  # type: ignore[misc]
    code, said = _command("merge", "--init", init, "--policies", policy, "--out", root / "out")
    return f"exit code {code}: {said[-300:]}" if code else _same_fault(policy, root / "out")


def _missing_in_both_fault(root: Path) -> str:
    """The models fit each other, so the merge is right in every tensor that there is; but transformers would fill
    both with random numbers: `check` tells it of what is given and of what is written, and loading refuses both."""
    init = tiny.make_model("llama", root / "init")
    policy = tiny.make_policies(init, root, num=1)[0]
    name = "model.layers.1.mlp.up_proj.weight"
    for folder in (init, policy):
        Scene(folder=folder, sharded=folder, canary=root / "canary", small=True).tensors(lambda one: one.pop(name))
    code, said = _command("merge", "--init", init, "--policies", policy, "--out", root / "out")
    if code:
        return f"exit code {code}: {said[-300:]}"
    if fault := _same_fault(policy, root / "out"):
        return fault
    for folder in (policy, root / "out"):
        if not any(name in problem for problem in check_checkpoint(folder, init=init)):
            return f"check does not name it in {folder.name}"
        try:
            load_policy(folder, device=torch.device("cpu"))
        except CheckpointError as error:
            if name not in str(error):
                return f"not named: {error}"
        else:
            return f"{folder.name} was loaded"
    return ""


def _wide_rank_fault(root: Path, init: Path) -> str:
    adapter = tiny.make_adapter(init, root / "adapter", rank=80)
    case = FolderCase(damage=_wide_rank_fault, expected="loaded")  # type: ignore[arg-type]
    return _adapter_fault(case, init, adapter) or _adapter_merge_fault(case, init, adapter)


def _other_base_fault(root: Path, models: _Models) -> str:
    """An adapter that was trained over other weights of the same shape."""
    base = shutil.copytree(models.policy, root / "base")
    adapter = tiny.make_adapter(base, root / "adapter")
    try:
        require_mixable(open_checkpoint(models.init), [open_checkpoint(adapter)])
    except MismatchError as error:
        named = "base" in str(error)
    else:
        return "mixed"
    arguments = ("merge", "--init", models.init, "--policies", adapter, "--out", root / "out")
    return _misuse_fault(*_command(*arguments), root / "out") if named else "the base is not named"


def _nested_base_fault(models: _Models) -> str:
    try:
        open_checkpoint(models.adapter, base=models.adapter)
    except CheckpointError as error:
        return "" if "adapter" in str(error) else str(error)
    return "opened"


def _generation_fault(root: Path, policy: Path) -> str:
    """Settings of sampling that are no object: `evaluate` says so in one line."""
    folder = shutil.copytree(policy, root / "policy")
    (folder / "generation_config.json").write_text("[1, 2]", encoding="ascii")
    prompts = root / "prompts.txt"
    prompts.write_text("a\n", encoding="ascii")
    options = ("--reward", "length", "--prompts", prompts, "--max-new-tokens", 2)
    code, said = _command("evaluate", "--policy", folder, "--anchor", policy, *options)
    return "" if code == 2 and "generation_config.json" in said else f"exit code {code}: {said[-300:]}"


def _unreadable_fault(policy: Path) -> str:
    """Files without the right to read them; root, who has every right, takes another user's place for it."""
    with tempfile.TemporaryDirectory(prefix="hostile-rights-") as name:
        Path(name).chmod(0o755)
        folder = shutil.copytree(policy, Path(name) / "policy")
        for file in ("model.safetensors", "config.json", "tokenizer.json", "."):
            (folder / file).chmod(0o000)
            try:
                fault = _without_rights(folder, file)
            finally:
                (folder / file).chmod(0o755)
            if fault:
                return f"{file}: {fault}"
    return ""


def _without_rights(folder: Path, file: str) -> str:
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        open_checkpoint(folder)
    except CheckpointError as error:
        text = str(error)
        return "" if "\n" not in text and (file in text or file == ".") else f"not named: {text}"
    else:
        return "opened"
    finally:
        if is_root:
            os.seteuid(0)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
