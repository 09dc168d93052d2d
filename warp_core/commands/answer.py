"""What a command answers: a JSON document for programs, a text for people, an exit code."""

from dataclasses import dataclass
from typing import Any

__all__ = ["INTERRUPTED", "Answer"]

INTERRUPTED = "interrupted; what was done is kept"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a command.

    Attributes:
        document: what `--json` prints.
        text: what is printed otherwise.
        code: exit code.
    """

    document: dict[str, Any]
    text: str
    code: int = 0
