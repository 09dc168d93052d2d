"""Prompt files of every kind, read as the trainer and an evaluation read them."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hostile.input_child import Found, watched
from hostile.outcomes import Outcome, Tally
from tests import tiny
from warp_core.errors import UserError
from warp_core.evaluation.evaluate import Subject, evaluation_of, measure
from warp_core.evaluation.points import point_from_samples
from warp_core.policy.loading import load_checkpoint
from warp_core.policy.prompts import encode_prompts, read_prompts, write_prompts
from warp_core.policy.room import require_room
from warp_core.rewards import load_reward
from warp_core.weights import open_checkpoint

__all__ = ["attack", "cases"]

CPU = torch.device("cpu")
ANSWER_S = 60.0
MOST_S = 5.0
NEW_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A file: what it holds, and the prompts that must come out; None where it must be refused.

    special: made in place of a file: "fifo", "folder", "missing", "link to a device".
    """

    name: str
    line: str
    content: bytes = b""
    prompts: tuple[str, ...] | None = None
    special: str = ""


def prompt_files(*, quick: bool) -> list[PromptFile]:
    """Return all of them; a line of explanation each."""
    return [*_refused(), *_kept(), *_large(quick=quick)]


def _refused() -> Iterator[PromptFile]:
    yield PromptFile(name="empty.txt", line="no byte")
    yield PromptFile(name="blank.txt", line="only blank lines", content=b" \n\t\n\r\n\n")
    yield PromptFile(name="bom-only.txt", line="a byte order mark and nothing else", content=b"\xef\xbb\xbf")
    yield PromptFile(name="binary.txt", line="a picture", content=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)))
    yield PromptFile(
        name="latin1.txt", line="one byte that is not UTF-8", content="Ein sch\u00f6ner Film\n".encode("latin-1")
    )
    yield PromptFile(name="cut.txt", line="the last character is cut", content="\u20ac\n\u20ac".encode()[:-1])
    yield PromptFile(name="overlong.txt", line="a slash in two bytes, which UTF-8 forbids", content=b"a\xc0\xafb\n")
    yield PromptFile(name="surrogate.txt", line="half a character in UTF-8", content=b"a\xed\xa0\x80b\n")
    yield PromptFile(name="utf16.txt", line="UTF-16 with its mark", content="The film\n".encode("utf-16"))
    yield PromptFile(name="utf16le.txt", line="UTF-16 without a mark", content="The film\n".encode("utf-16-le"))
    yield PromptFile(name="utf32.txt", line="UTF-32", content="The film\n".encode("utf-32"))
    yield PromptFile(name="nul.txt", line="a NUL byte", content=b"The film\0 was\n")
    yield PromptFile(name="fifo.txt", line="a pipe that nobody writes to", special="fifo")
    yield PromptFile(name="folder.txt", line="a folder", special="folder")
    yield PromptFile(name="missing.txt", line="nothing there", special="missing")
    yield PromptFile(name="zero.txt", line="a link to a device without end", special="link to a device")
    yield PromptFile(name="loop.txt", line="a link to itself", special="loop")
    lines = {
        "text.jsonl": ("text where JSON is expected", b"The film was\n"),
        "array.jsonl": ("an array in a line", b'["The film was"]\n'),
        "other.jsonl": ("an object without a prompt", b'{"text": "The film was"}\n'),
        "number.jsonl": ("a prompt that is a number", b'{"prompt": 3}\n'),
        "null.jsonl": ("a prompt that is null", b'{"prompt": null}\n'),
        "list.jsonl": ("a prompt that is a chat", b'{"prompt": [{"role": "user", "content": "x"}]}\n'),
        "blank.jsonl": ("a prompt of blanks", b'{"prompt": "  \\n"}\n'),
        "deep.jsonl": ("JSON 100,000 deep", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
        "half.jsonl": ("half a character, escaped", b'{"prompt": "a \\ud800 b"}\n'),
        "cut.jsonl": ("the last line is cut", b'{"prompt": "x"}\n{"prompt": "y'),
        "digits.jsonl": ("a number of 6000 digits", b'{"prompt": ' + b"9" * 6000 + b"}\n"),
        "UPPER.JSONL": ("JSON lines under a name in capitals, one of them bad", b'{"prompt": "x"}\nplain\n'),
    }
    for name, (line, content) in lines.items():
        yield PromptFile(name=name, line=line, content=content)


def _kept() -> Iterator[PromptFile]:
    plain = ("The film", "A plot", "\u00fcber")
    text = "\n".join(plain)
    yield PromptFile(name="lf.txt", line="lines end with LF", content=f"{text}\n".encode(), prompts=plain)
    yield PromptFile(name="no-end.txt", line="the last line has no end", content=text.encode(), prompts=plain)
    yield PromptFile(name="crlf.txt", line="CR LF", content=text.replace("\n", "\r\n").encode(), prompts=plain)
    yield PromptFile(name="cr.txt", line="CR alone", content=text.replace("\n", "\r").encode(), prompts=plain)
    yield PromptFile(name="bom.txt", line="a byte order mark", content=b"\xef\xbb\xbf" + text.encode(), prompts=plain)
    yield PromptFile(
        name="blanks.txt", line="blanks around", content=b" The film \n\n\tx\t\n", prompts=("The film", "x")
    )
    odd = ("a\u2028b", "c\u2029d", "e\x0bf", "g\x0ch", "i\x85j", "k\x1cl\x1dm\x1en")
    yield PromptFile(
        name="separators.txt",
        line="U+2028, form feed and others within a line",
        content="\n".join(odd).encode(),
        prompts=odd,
    )
    control = ("a\x1b[2Jb", "c\x07d\x08e", "f\x7fg", "h\u202ei", "j\u200bk", "l\ufeffm")
    yield PromptFile(
        name="control.txt",
        line="characters that command a terminal or hide",
        content="\n".join(control).encode(),
        prompts=control,
    )
    wide = (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "e\u0301 is not \u00e9",
        "\U00020000",
        "\u0627\u0644\u0641\u064a\u0644\u0645",
    )
    yield PromptFile(
        name="wide.txt", line="beyond 16 bits, combining marks", content="\n".join(wide).encode(), prompts=wide
    )
    again = ("The film", "The film", "the film", "The film")
    yield PromptFile(
        name="again.txt", line="the same prompt again and again", content="\n".join(again).encode(), prompts=again
    )
    special = ("<eos>", "a <|user|> b", "<pad><bos>", "</s>", "{{ messages }}", "{% raw %}")
    yield PromptFile(
        name="special.txt",
        line="special tokens and template marks written out",
        content="\n".join(special).encode(),
        prompts=special,
    )
    objects = ('{"prompt": "x"}', "[1, 2]")
    yield PromptFile(
        name="json.txt", line="JSON lines in a text file", content="\n".join(objects).encode(), prompts=objects
    )
    kept = (
        "two\nlines",
        "a\u2028b\x85c",
        "nul \0 in it",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "tab\there",
    )
    escaped = "".join(json.dumps({"prompt": one}) + "\n" for one in kept)
    yield PromptFile(
        name="escaped.jsonl", line="everything that JSON can escape", content=escaped.encode(), prompts=kept
    )
    raw = "".join(json.dumps({"prompt": one}, ensure_ascii=False) + "\r\n" for one in kept)
    yield PromptFile(name="raw.jsonl", line="the same, not escaped, with CR LF", content=raw.encode(), prompts=kept)
    marked = b'\xef\xbb\xbf{"prompt": "x", "id": 3}\n\n{"id": 4, "prompt": " y "}'
    yield PromptFile(name="bom.jsonl", line="a byte order mark and more fields", content=marked, prompts=("x", "y"))


def _large(*, quick: bool) -> Iterator[PromptFile]:
    number = 20_000 if quick else 200_000
    many = tuple(f"prompt {index}" for index in range(number))
    yield PromptFile(name="many.txt", line="200,000 lines", content="\n".join(many).encode(), prompts=many)
    objects = "".join(f'{{"prompt": "{one}"}}\n' for one in many)
    yield PromptFile(name="many.jsonl", line="200,000 JSON lines", content=objects.encode(), prompts=many)
    long = "word " * 200_000
    yield PromptFile(name="long.txt", line="a line of 1 MB", content=long.encode(), prompts=(long.strip(),))


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """See hostile/README.md."""
    exact = "the prompts come out exactly, and again from the copy that a run keeps, or one line names the file; in 5 s"
    measured = (
        "finite numbers for exactly these prompts in the order of the file, or one line; never a part of a prompt"
    )
    tallies = {
        "read": Tally("files", promise="", holds=exact),
        "measured": Tally("evaluations", promise="", holds=measured),
    }
    refused = dict.fromkeys(tallies, 0)
    arguments = {"place": str(place), "quick": quick}
    for found in watched("hostile.prompts:cases", arguments, answer_s=ANSWER_S):
        if "problem" in found:
            tallies["read"].check(False, found["problem"])
            continue
        refused[found["group"]] += found["refused"]
        tallies[found["group"]].check(not found["fault"], f"{found['case']}: {found['fault']}")
    for group, tally in tallies.items():
        yield tally.outcome(f"{refused[group]} refused")


def cases(place: str, quick: bool) -> Iterator[Found]:
    """Read every file, and measure a tiny model on what can be read; in a process of its own."""
    for found in _read_cases(Path(place) / "read", quick=quick):
        yield {"group": "read"} | found
    for found in _evaluated_cases(Path(place) / "measured"):
        yield {"group": "measured"} | found


def _made(one: PromptFile, place: Path) -> Path:
    """Put a file in its place."""
    path = place / one.name
    place.mkdir(parents=True, exist_ok=True)
    if one.special == "fifo":
        os.mkfifo(path)
    elif one.special == "folder":
        path.mkdir()
    elif one.special == "link to a device":
        path.symlink_to("/dev/zero")
    elif one.special == "loop":
        path.symlink_to(path)
    elif not one.special:
        path.write_bytes(one.content)
    return path


def _read_cases(place: Path, *, quick: bool) -> Iterator[Found]:
    """Read every file, and what a run would keep of it."""
    for one in prompt_files(quick=quick):
        path = _made(one, place)
        began = time.process_time()
        refused, fault = False, ""
        try:
            prompts = read_prompts(str(path))
            copy = path.with_name("copy.jsonl")
            write_prompts(copy, prompts)
            if prompts != one.prompts:
                fault = f"read as {str(prompts)[:200]}"
            elif read_prompts(str(copy)) != prompts:
                fault = "the copy that a run keeps differs"
        except UserError as error:
            refused, fault = True, _fault_of(error, path)
            if one.prompts is not None:
                fault = f"refused: {error}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        seconds = time.process_time() - began
        if not fault and seconds > MOST_S:
            fault = f"took {seconds:.1f} s"
        yield {"case": f"{one.name} ({one.line})", "refused": refused, "fault": fault}


def _fault_of(error: UserError, path: Path) -> str:
    text = str(error)
    if "\n" in text or len(text) > 600 or path.name not in text:
        return f"refused, but not in one line that names the file: {text[:200]!r}"
    return ""


def _evaluated_cases(folder: Path) -> Iterator[Found]:
    """Measure a tiny model on every file that can be read, as `warp-core evaluate` does."""
    torch.set_num_threads(1)
    init = tiny.make_model("llama", folder / "init")
    policy = tiny.make_policies(init, folder, num=1)[0]
    subject = Subject(policy=load_checkpoint(open_checkpoint(policy)), reference=load_checkpoint(open_checkpoint(init)))
    reward = load_reward(["length"], device="cpu")
    files = [one for one in prompt_files(quick=True) if one.prompts]
    for one in files:
        path = _made(one, folder)
        refused, fault = False, ""
        try:
            prompts = read_prompts(str(path))
            if len(prompts) > 100:
                prompts = prompts[:8]
            require_room(open_checkpoint(init), prompts, chat_template=False, max_new_tokens=NEW_TOKENS)
            fault = _evaluation_fault(subject, reward, prompts)
        except UserError as error:
            refused = True
            expected = one.name == "long.txt"
            fault = "" if expected and "\n" not in str(error) else f"refused: {error}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        yield {"case": f"{one.name} ({one.line})", "refused": refused, "fault": fault}


def _evaluation_fault(subject: Subject, reward: object, prompts: tuple[str, ...]) -> str:
    """What is wrong with an evaluation of these prompts; "" where nothing is."""
    tokenizer = subject.policy.tokenizer
    batch = encode_prompts(prompts, tokenizer, chat_template=False, device=CPU)
    for prompt, ids, mask in zip(prompts, batch.ids_BP.tolist(), batch.mask_BP.tolist(), strict=True):
        own = [token for token, kept in zip(ids, mask, strict=True) if kept]
        if own != list(tokenizer(prompt)["input_ids"]) or tokenizer.decode(own) != prompt:
            return f"{prompt!r} was encoded as {tokenizer.decode(own)!r}"
    evaluation = evaluation_of(
        prompts,
        reward,  # type: ignore[arg-type]
        samples_per_prompt=2,
        max_new_tokens=NEW_TOKENS,
        temperature=0.9,
        seed=1,
        kl_estimator="exact",
        chat_template=False,
        anchor="init",
        speech="tiny",
        dtype="float32",
    )
    samples = measure(subject, prompts, reward, evaluation)  # type: ignore[arg-type]
    if [sample.prompt for sample in samples] != [prompt for prompt in prompts for _ in range(2)]:
        return "the samples are not of these prompts"
    point = point_from_samples(samples, evaluation=evaluation, policy="policy")
    if point.n != 2 * len(prompts) or evaluation.num_prompts != len(prompts):
        return f"{point.n} completions of {len(prompts)} prompts"
    if not point.kl > 0:
        return f"KL {point.kl}"
    return ""
