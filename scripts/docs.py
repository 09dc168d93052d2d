"""Write the generated parts of the documentation: `make docs`; a test fails where one of them is out of date.

    .venv/bin/python scripts/docs.py

README.md             the table of commands, between its two markers
docs/commands.md      every option of every command
docs/config.md        every field of a configuration
docs/results.md       what the studies in docs/studies found, once there are any

Commands are made from the parser itself and not from its --help, whose layout changes with the version of Python.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from warp_core.cli import build_parser
from warp_core.studies.catalogue import NAMES
from warp_core.studies.report import read_documents, results_page
from warp_core.training.config import docs_table

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Write what is out of date and say so."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


def pages() -> dict[Path, str]:
    """Every file with generated parts, as it should be."""
    parser = build_parser()
    readme = ROOT / "README.md"
    return results() | {
        readme: with_part(readme.read_text(encoding="utf-8"), "commands", command_table(parser)),
        ROOT / "docs" / "commands.md": command_reference(parser),
        ROOT / "docs" / "config.md": docs_table(),
    }


def results() -> dict[Path, str]:
    """The page of results, where studies have been run."""
    documents = read_documents(ROOT / "docs" / "studies")
    return {ROOT / "docs" / "results.md": results_page(documents, order=NAMES, folder="studies")} if documents else {}


def with_part(text: str, name: str, body: str) -> str:
    """`text` with `body` between its markers <!-- begin:NAME --> and <!-- end:NAME -->.

    Raises ValueError if it does not hold each marker once, in this order.
    """
    begin, end = f"<!-- begin:{name} -->\n", f"<!-- end:{name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"no part {name!r}: the text needs {begin.strip()} and, after it, {end}")
    return f"{before}{begin}{body}{end}{after}"


def command_table(parser: argparse.ArgumentParser) -> str:
    """One row per command: how it is called at least, and what it does."""
    rows = [
        f"| `{synopsis(command)}` | {cell(command.description or '')} |" for command in commands_of(parser).values()
    ]
    return "\n".join(["| command | does |", "|---|---|", *rows, ""])


def command_reference(parser: argparse.ArgumentParser) -> str:
    """docs/commands.md: a section per command."""
    lines = ["# Commands", "", "Made by `make docs` from the parser; a test keeps it true.", ""]
    for name, command in commands_of(parser).items():
        lines += [f"## `{name}`", "", f"    {synopsis(command)}", "", cell(command.description or ""), ""]
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{signature(action)}` | {cell(action.help or '')} |" for action in arguments_of(command)]
        lines.append("")
    return "\n".join(lines)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands by name, in the order of --help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def arguments_of(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a command: positional ones, required options, then the others; --help is left out."""
    shown = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
    yield from sorted(shown, key=lambda action: (bool(action.option_strings), not action.required))


def synopsis(command: argparse.ArgumentParser) -> str:
    """The command with what it cannot do without, and [...] for the rest."""
    listed = list(arguments_of(command))
    parts = [signature(action) for action in listed if action.required or not action.option_strings]
    rest = [] if len(parts) == len(listed) else ["[...]"]
    return " ".join([command.prog, *parts, *rest])


def signature(action: argparse.Action) -> str:
    """How an argument is written: `--policies B [B ...]`, `[RUN]`, `--as {full,adapter}`."""
    if action.nargs == 0:
        return action.option_strings[-1]
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    value = {"+": f"{value} [{value} ...]", "*": f"[{value} ...]", "?": f"[{value}]"}.get(str(action.nargs), value)
    return f"{action.option_strings[-1]} {value}" if action.option_strings else value


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: one line, its bars escaped."""
    return " ".join(text.replace("%%", "%").split()).replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
