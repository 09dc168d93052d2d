"""The tree of errors: as drawn, exit codes decidable by class, nothing that is public left out."""

import inspect
import re
from pathlib import Path

import pytest

from warp_core import errors

CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}


def drawn_tree() -> dict[str, str]:
    """Parent of each class, read from the drawing at the top of the module."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4,})([A-Z]\w+)", line)
        if match and match[2] in CLASSES:
            depth = len(match[1])
            path = [(other, name) for other, name in path if other < depth]
            parents[match[2]] = path[-1][1] if path else "Exception"
            path.append((depth, match[2]))
    return parents


def test_the_drawing_is_the_tree():
    assert drawn_tree() == {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}


def test_all_of_them_are_public_and_documented():
    assert sorted(errors.__all__) == sorted(CLASSES)
    assert all(inspect.getdoc(cls) and cls.__doc__ for cls in CLASSES.values())


def test_a_mistake_of_the_user_is_a_value_error_and_divergence_is_not():
    assert issubclass(errors.UserError, ValueError)
    assert not issubclass(errors.DivergedError, errors.UserError)
    assert all(issubclass(cls, errors.WarpError) for cls in CLASSES.values())


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_message_is_what_is_shown(name):
    assert str(CLASSES[name]("what, where, what to do")) == "what, where, what to do"


def test_only_errors_of_the_tree_are_raised_for_users():
    """A bare Exception or RuntimeError would be shown with a traceback; ValueError and assert are for callers."""
    package = Path(errors.__file__).parent
    found = [
        f"{file.relative_to(package)}: {line.strip()}"
        for file in package.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"\braise (Exception|RuntimeError|OSError|KeyError|TypeError)\b\(", line)
    ]
    assert found == []
