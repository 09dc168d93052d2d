"""The completions: chips, slices and text that choose rows, the table, and the two full texts of one row."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import ui
from app.compare.comparison import Comparison, judge_of
from app.compare.files import completions_csv
from app.compare.models import CompareModel
from app.compare.rows import Chip, Pair, Row, Slice, Sort, chosen, lines_of, shown_text, slices, sort_rows, summary
from app.components.panes import CompletionView, PaneView, panes
from app.view import View
from warp_core.service.documents import SampleRow
from warp_core.service.places import place_label

__all__ = ["completions"]

_TABLE = "compare_table"
ALL_ROWS = "All rows"
ROW_PX, TABLE_PX = 74, 480


def completions(comparison: Comparison, view: View) -> None:
    """Draw the section; needs two measured models."""
    pair, shown, parts = _choices(comparison, view)
    count, download = st.columns([5, 1], vertical_alignment="bottom")
    count.text(f"{len(shown)} of {len(comparison.rows)} shown")
    download.download_button(
        "CSV",
        data=lambda: completions_csv(shown, comparison.measured),
        file_name="completions.csv",
        mime="text/csv",
        key="compare_csv",
        on_click="ignore",
        icon=":material/download:",
        help="Shown rows, all models, one line per completion",
        width="stretch",
    )
    if shown:
        selected = _table(comparison, shown, pair)
        _detail(comparison, shown, selected, pair)
    else:
        ui.empty_state("No row passes", "Take a chip off, choose all rows, or search for another text.")
    _slice_table(comparison, parts, pair)


def _choices(comparison: Comparison, view: View) -> tuple[Pair, list[Row], list[Slice]]:
    """The two models that everything is about, the rows to show in their order, and the slices."""
    letters = [model.letter for model in comparison.measured]
    pinned = view.pins[view.reference].place if view.reference is not None else None
    usual = next((m.letter for m in comparison.measured if m.place == pinned), letters[0])
    first, second, third, fourth, fifth = st.columns(5)
    with second:
        reference = _model_choice("Reference", "compare_reference", comparison.measured, usual)
    others = [model for model in comparison.measured if model.letter != reference]
    with first:
        pair = Pair(model=_model_choice("Model", "compare_model", others, others[0].letter), reference=reference)
    sort = third.selectbox("Sort by", list(Sort), key="compare_sort", persist_state="session")
    parts = slices(comparison.rows, pair=pair)
    with fourth:
        part = _slice_choice(comparison, parts)
    text = fifth.text_input(
        "Contains", key="compare_text", placeholder="in prompt or completion", persist_state="session", live=True
    )
    judge = judge_of(comparison)
    rows = chosen(
        next((one.rows for one in parts if one.name == part), comparison.rows),
        pair=pair,
        chips=_chips(pair),
        votes=comparison.index,
        judge=lambda row: judge.gain(row, pair) if judge else 0.0,
        text=text,
    )
    return pair, sort_rows(rows, sort=sort, pair=pair), parts


def _model_choice(label: str, key: str, models: Sequence[CompareModel], usual: str) -> str:
    letters = [model.letter for model in models]
    if st.session_state.get(key) not in letters:
        st.session_state[key] = usual
    names = {model.letter: model.name for model in models}
    return st.selectbox(label, letters, format_func=lambda one: names[one], key=key, persist_state="session")


def _slice_choice(comparison: Comparison, parts: Sequence[Slice]) -> str:
    sizes = {ALL_ROWS: len(comparison.rows)} | {part.name: len(part.rows) for part in parts}
    if st.session_state.get("compare_slice") not in sizes:
        st.session_state["compare_slice"] = ALL_ROWS
    return st.selectbox(
        "Slice",
        list(sizes),
        format_func=lambda name: f"{name} ({sizes[name]})",
        key="compare_slice",
        persist_state="session",
    )


def _chips(pair: Pair) -> list[Chip]:
    return st.pills(
        f"Rows of {pair.model} against {pair.reference}",
        list(Chip),
        selection_mode="multi",
        key="compare_chips",
        persist_state="session",
        help="Judge against vote: the judge chosen under Preferences and a vote decide the other way round.",
    )


def _table(comparison: Comparison, shown: Sequence[Row], pair: Pair) -> Row:
    """The table; return the row that is selected, the first where none is."""
    numbers = [row.number for row in shown]
    last = st.session_state.get("compare_row", numbers[0])
    place = numbers.index(last) if last in numbers else 0
    st.session_state[_TABLE] = {"selection": {"rows": [place]}}
    st.dataframe(
        _frame(comparison, shown, pair),
        key=_TABLE,
        hide_index=True,
        row_height=ROW_PX,
        height=min(TABLE_PX, 40 + ROW_PX * len(shown)),
        on_select=lambda: _select(numbers),
        selection_mode="single-row",
        column_config=_columns(comparison, pair),
        placeholder="",
        alt="Completions of all models, one row per prompt and seed",
    )
    return shown[place]


def _select(numbers: Sequence[int]) -> None:
    """Remember the row that was clicked by its number, so that it stays selected in another order."""
    rows = st.session_state[_TABLE]["selection"]["rows"]
    if rows:
        st.session_state["compare_row"] = numbers[rows[0]]


def _frame(comparison: Comparison, shown: Sequence[Row], pair: Pair) -> pd.DataFrame:
    """The two models first, so that they are seen without scrolling; the other models behind them."""
    two = [comparison.model(letter) for letter in (pair.reference, pair.model)]
    columns: dict[str, list[Any]] = {
        "#": [row.number + 1 for row in shown],
        "Prompt": [row.prompt for row in shown],
        **{model.name: [shown_text(row.cells[model.letter].completion) for row in shown] for model in two},
        "Reward gain": [pair.gain(row) for row in shown],
        "Vote": [pair.vote(row, comparison.index) for row in shown],
        **_numbers(two, shown),
    }
    others = [model for model in comparison.measured if model not in two]
    columns |= {model.name: [shown_text(row.cells[model.letter].completion) for row in shown] for model in others}
    return pd.DataFrame(columns | _numbers(others, shown))


def _numbers(models: Sequence[CompareModel], shown: Sequence[Row]) -> dict[str, list[float]]:
    return {
        f"{title} {model.letter}": [getattr(row.cells[model.letter], field) for row in shown]
        for title, field in (("Reward", "reward"), ("KL", "kl"), ("Length", "num_tokens"))
        for model in models
    }


def _columns(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """How the columns look: texts wide, numbers narrow with two decimals."""
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {
        "#": number(width=45, pinned=True),
        "Prompt": st.column_config.TextColumn(width=190),
        "Reward gain": number(format="%+.2f", width=100, help=f"Reward of {pair.model} less that of {pair.reference}"),
        "Vote": number(
            format="%+.2g", width=65, help=f"Mean vote for {pair.model} over {pair.reference} on these texts"
        ),
    }
    for model in comparison.measured:
        config[model.name] = st.column_config.TextColumn(width=270)
        config[f"Reward {model.letter}"] = number(format="%.2f", width=85)
        config[f"KL {model.letter}"] = number(format="%.2f", width=70, help="Nats, of the completion")
        config[f"Length {model.letter}"] = number(width=80, help="Tokens")
    return config


def _detail(comparison: Comparison, shown: Sequence[Row], row: Row, pair: Pair) -> None:
    """The prompt and both full texts of a row, with the words that differ."""
    place = [one.number for one in shown].index(row.number)
    with st.container(border=True, key="compare-detail"):
        title, back, on = st.columns([6, 1, 1], vertical_alignment="center")
        title.text(f"Row {row.number + 1}, completion {row.sample} of its prompt")
        for column, label, step, key in ((back, "Previous", -1, "Left"), (on, "Next", 1, "Right")):
            there = place + step
            inside = 0 <= there < len(shown)
            column.button(
                label,
                key=f"compare_{label.lower()}",
                disabled=not inside,
                on_click=_go_to,
                args=(shown[there].number if inside else row.number,),
                shortcut=f"Alt+{key}",
                width="stretch",
            )
        st.text(row.prompt)
        views = [
            _pane(comparison.model(pair.reference), row, share=0.0),
            _pane(comparison.model(pair.model), row, share=1.0),
        ]
        longest = max(len(row.cells[letter].completion) for letter in (pair.reference, pair.model))
        panes(views, key="compare_detail_panes", show_differences=True, lines=lines_of(longest))


def _go_to(number: int) -> None:
    st.session_state["compare_row"] = number


def _pane(model: CompareModel, row: Row, *, share: float) -> PaneView:
    cell = row.cells[model.letter]
    completion = CompletionView(text=shown_text(cell.completion), done=True, facts=_facts(cell))
    recipe = place_label(model.place)
    return PaneView(
        id=model.letter,
        title=model.name,
        recipe=recipe if recipe != model.label else "",
        state="done",
        status=" ",
        share=share,
        completions=(completion,),
    )


def _facts(cell: SampleRow) -> tuple[tuple[str, str], ...]:
    parts = tuple((name, ui.number(value)) for name, value in cell.rewards.items()) if len(cell.rewards) > 1 else ()
    return (("reward", ui.number(cell.reward)), *parts, ("KL", ui.number(cell.kl)), ("tokens", str(cell.num_tokens)))


def _slice_table(comparison: Comparison, parts: Sequence[Slice], pair: Pair) -> None:
    """How the model does against the reference on parts of the set."""
    everything = Slice(name=ALL_ROWS, rows=comparison.rows)
    found = [summary(part, pair=pair, votes=comparison.index) for part in (everything, *parts)]
    with st.expander(f"Slices: {pair.model} against {pair.reference} by prompt and by what the reference wrote"):
        st.dataframe(
            pd.DataFrame(
                {
                    "Slice": [one.name for one in found],
                    "Rows": [one.num_rows for one in found],
                    "Reward difference": [one.gain.mean for one in found],
                    "Standard error": [one.gain.se for one in found],
                    "Reward higher": [100 * one.share_higher for one in found],
                    "Mean vote": [one.vote for one in found],
                }
            ),
            hide_index=True,
            key="compare_slices",
            placeholder="\u2013",
            alt="Reward difference and votes by slice",
            column_config={
                "Reward difference": st.column_config.NumberColumn(format="%+.2f"),
                "Standard error": st.column_config.NumberColumn(format="%.2f", help="Of the mean, paired over prompts"),
                "Reward higher": st.column_config.NumberColumn(format="%.0f %%", help="Share of rows"),
                "Mean vote": st.column_config.NumberColumn(format="%+.2f"),
            },
        )
