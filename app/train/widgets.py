"""The widgets of the form: one per field of the configuration, with its help, its limits and what is wrong with it."""

from collections.abc import Callable, Mapping

import streamlit as st

from app.train.draft import Draft, Term
from app.train.fields import Field
from app.train.labels import LORA_ONLY, Rows, label_of
from app.ui import markdown_escaped

__all__ = ["BUILT_IN_REWARDS", "field_rows", "field_widget", "say_problem", "term_widgets"]

BUILT_IN_REWARDS = ("sentiment", "length", "words", "repetition", "finished", "ascii", "uppercase")
REWARD_HELP = (
    "A built-in name, a folder or Hub id of a sequence-classification model (with #LABEL where it does not say which "
    "label is good), or python:module.function. Type to enter one that is not in the list."
)
LARGEST_WHOLE = 2**53 - 1  # that a browser counts exactly


def field_rows(rows: Rows, draft: Draft, problems: Mapping[str, str]) -> None:
    """Draw rows of fields; those of an adapter only where one is trained."""
    is_full = draft.values["adapter.kind"] == "full"
    for row in rows:
        shown = [one for one in row if not (is_full and one in LORA_ONLY)]
        for column, one in zip(st.columns(len(row)), shown, strict=False):
            with column:
                field_widget(draft.fields[one], draft, problems)
    if is_full and any(one in LORA_ONLY for row in rows for one in row):
        st.caption("Every weight is trained: there is no adapter to configure.")


def field_widget(field: Field, draft: Draft, problems: Mapping[str, str]) -> None:
    """Draw a field as what it is: a choice, a number, a switch or text."""
    value, label, key = draft.values[field.id], label_of(field.id), draft.key(field.id)
    text = f"{markdown_escaped(field.help)}  \n`{field.id}`"
    if field.kind == "choice":
        st.selectbox(label, field.options, field.options.index(value), key=key, help=text)
    elif field.kind == "choices":
        st.multiselect(label, field.options, value, key=key, help=text)
    elif field.kind == "flag":
        st.toggle(label, value, key=key, help=text)
    elif field.kind == "whole":
        low, high = int(field.minimum or 0), int(field.maximum or LARGEST_WHOLE)
        st.number_input(label, low, high, value, step=1, key=key, help=text)
    elif field.kind == "number":
        step = _step(float(field.default))
        st.number_input(label, field.minimum, field.maximum, value, step=step, format="%g", key=key, help=text)
    else:
        placeholder = "equal shares" if field.id == "merge.weights" else None
        st.text_input(label, value, key=key, help=text, placeholder=placeholder)
    say_problem(problems.get(field.id))


def _step(default: float) -> float:
    """A step that gets somewhere: a tenth of the default, rounded down to a power of ten."""
    return float(f"1e{int(f'{default / 10 or 0.01:e}'.partition('e')[2])}")


def say_problem(problem: str | None) -> None:
    """Say what is wrong with the field above; nothing for None."""
    if problem:
        st.markdown(f":red[:small[{markdown_escaped(problem)}]]")


def term_widgets(draft: Draft, term: Term, *, is_first: bool, remove_it: Callable[[int], None] | None) -> None:
    """Draw one part of the reward.

    Args:
        draft: whose part it is.
        term: the part.
        is_first: has the labels above it.
        remove_it: takes its id; None where it may not be removed.
    """
    name, weight, remove = st.columns([6, 2, 2], vertical_alignment="bottom")
    labels = "visible" if is_first else "collapsed"
    known = (*BUILT_IN_REWARDS, *([] if term.name in BUILT_IN_REWARDS else [term.name]))
    name.selectbox(
        "Reward model or function",
        known,
        known.index(term.name),
        key=draft.key(f"term-{term.id}"),
        accept_new_options=True,
        help=REWARD_HELP,
        label_visibility=labels,
    )
    key = draft.key(f"weight-{term.id}")
    weight.number_input("Weight", value=term.weight, step=0.1, format="%g", key=key, label_visibility=labels)
    if remove_it is not None:
        key = f"train-remove-{term.id}"
        remove.button("Remove", key=key, type="tertiary", on_click=remove_it, args=(term.id,))
