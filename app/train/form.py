"""The form for Algorithm 1, the TOML it makes, and the button that starts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app.engine import engine
from app.train.draft import RUNS, TERMS, Draft, current_draft, free_name, name_problem, read_toml
from app.train.estimate import estimate, steps_in_all
from app.train.fields import fields_of, problems_by_field
from app.train.labels import ESSENTIALS, GROUPS, ungrouped
from app.train.presets import PRESETS, preset
from app.train.state import MESSAGE, show_runs, watch
from app.train.widgets import BUILT_IN_REWARDS, field_rows, field_widget, say_problem, term_widgets
from app.ui import duration, errors_shown, markdown_escaped
from warp_core.errors import ConfigError, WarpError
from warp_core.service.documents import ConfigCheck, RunSummary
from warp_core.service.protocol import TrainRequest

__all__ = ["form", "use_config"]

RUNS_EXAMPLE = '[[runs]]\ntraining.beta = 0.02\n[[runs]]\nreward.terms = ["sentiment", "length:-0.01"]'
RUNS_HELP = "One [[runs]] table per policy, with the fields of [training] and [reward] in which it differs."


@dataclass(frozen=True, kw_only=True)
class Looked:
    """The draft as the engine sees it."""

    check: ConfigCheck
    at: dict[str, str]
    """Problem by field id."""
    others: list[str]
    """Problems of no field of the form."""


def form(runs: Sequence[RunSummary]) -> None:
    """Draw the form; every change is looked at by the engine before anything is drawn."""
    draft = _draft()
    draft.collect()
    taken = [run.name for run in runs]
    if not draft.values["name"] and draft.key("name") not in st.session_state:
        draft.values["name"] = free_name("run", taken)
    looked = _look(draft)
    problem = name_problem(draft.values["name"], taken)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _start_from()
        _essentials(draft, looked)
        _groups(draft, looked)
    with right:
        _start(draft, looked, problem, runs)
        _toml(draft, looked)


def use_config(config: dict[str, Any], *, name: str, taken: Sequence[str]) -> None:
    """Fill the form with a configuration, under a name that is free."""
    draft = _draft()
    draft.load(config)
    draft.rename(free_name(name, taken))


def _draft() -> Draft:
    if "train-fields" not in st.session_state:
        st.session_state["train-fields"] = fields_of(engine().config_schema())
    return current_draft(st.session_state["train-fields"])


def _look(draft: Draft) -> Looked:
    try:
        check = engine().check_config(draft.config())
    except ConfigError as error:
        check = ConfigCheck(ok=False, problems=(str(error),), toml="", config={})
    at, others = problems_by_field(check.problems, [*draft.fields, RUNS])
    return Looked(check=check, at=at, others=others)


def _start_from() -> None:
    st.caption("Start from")
    with st.container(horizontal=True, key="train-presets"):
        for name, label in PRESETS.items():
            st.button(label, key=f"train-preset-{name}", on_click=_load_preset, args=(name,))
        with st.popover("From TOML", help="Upload or paste a configuration"):
            _upload()


def _load_preset(name: str) -> None:
    _draft().load(preset(name))


def _upload() -> None:
    file = st.file_uploader("Upload a TOML file", type=["toml"], key="train-upload")
    text = st.text_area("or paste it here", key="train-paste", height=160, placeholder="[training]\nsteps = 20")
    given = file.getvalue().decode("utf-8", errors="replace") if file is not None else text
    st.button(
        "Use it", key="train-use-toml", type="primary", disabled=not given.strip(), on_click=_load_toml, args=(given,)
    )
    for problem in st.session_state.pop("train-toml-problems", []):
        st.text(problem)


def _load_toml(text: str) -> None:
    try:
        config = read_toml(text, what="the text")
        check = engine().check_config(config)
    except WarpError as error:
        st.session_state["train-toml-problems"] = [str(error)]
        return
    if check.ok:
        _draft().load(check.config)
    else:
        st.session_state["train-toml-problems"] = list(check.problems)


def _essentials(draft: Draft, looked: Looked) -> None:
    model, adapter = st.columns([2, 1])
    with model:
        field_widget(draft.fields["model.name"], draft, looked.at)
    with adapter:
        field_widget(draft.fields["adapter.kind"], draft, looked.at)
    _reward(draft, looked)
    for title, rows in ESSENTIALS.items():
        st.markdown(f"**{title}**")
        field_rows(rows, draft, looked.at)


def _groups(draft: Draft, looked: Looked) -> None:
    for title, rows in GROUPS.items():
        wrong = sum(one in looked.at for row in rows for one in row)
        mark = f" :red[({wrong} to mend)]" if wrong else ""
        with st.expander(f"{title}{mark}", key=f"train-group-{title}"):
            field_rows(rows, draft, looked.at)
    rest = ungrouped(draft.fields)
    if rest:
        with st.expander("More"):
            field_rows(rest, draft, looked.at)
    with st.expander("Differences between the policies", key="train-group-runs"):
        st.text_area(RUNS_HELP, draft.runs, key=draft.key(RUNS), placeholder=RUNS_EXAMPLE, height=130)
        say_problem(looked.at.get(RUNS))


def _reward(draft: Draft, looked: Looked) -> None:
    st.markdown("**Reward**", help=markdown_escaped(draft.fields[TERMS].help))
    for place, term in enumerate(draft.terms):
        term_widgets(draft, term, is_first=place == 0, remove_it=_remove_term if len(draft.terms) > 1 else None)
    say_problem(looked.at.get(TERMS))
    st.button("Add a term", key="train-add-term", icon=":material/add:", type="tertiary", on_click=_add_term)


def _add_term() -> None:
    draft = _draft()
    draft.collect()
    used = {term.name for term in draft.terms}
    draft.add_term(next((name for name in BUILT_IN_REWARDS if name not in used), "length"))


def _remove_term(term_id: int) -> None:
    draft = _draft()
    draft.collect()
    draft.remove_term(term_id)


def _start(draft: Draft, looked: Looked, name_wrong: str | None, runs: Sequence[RunSummary]) -> None:
    with st.container(border=True, key="train-start-card"):
        st.text_input("Name of the run", draft.values["name"], key=draft.key("name"), max_chars=100)
        say_problem(name_wrong)
        if looked.check.ok:
            _cost(looked.check.config, runs)
        for problem in looked.others:
            say_problem(problem)
        if looked.at:
            count = len(looked.at)
            say_problem(f"{count} field{'s' if count > 1 else ''} to mend: {', '.join(looked.at)}")
        ready = looked.check.ok and name_wrong is None
        st.button("Start", key="train-start", type="primary", width="stretch", disabled=not ready, on_click=_go)
        for problem in st.session_state.pop("train-start-problem", []):
            say_problem(problem)


def _cost(config: dict[str, Any], runs: Sequence[RunSummary]) -> None:
    steps, warp = steps_in_all(config), config["warp"]
    plural = "s" if warp["iterations"] > 1 else ""
    st.text(f"{warp['policies']} policies x {warp['iterations']} iteration{plural}: {steps} steps in all")
    with errors_shown():
        known = st.session_state.setdefault("train-known-speeds", {})
        found = estimate(engine(), config, runs, known=known)
    if found is None:
        st.caption("No run with this model and batch yet, so there is no estimate of the time.")
    else:
        each = duration(found.seconds_per_step)
        st.caption(
            f"About {duration(found.seconds)} of training one policy after the other: {each} a step, as measured in "
            f"{markdown_escaped(found.run)}. Measuring comes on top."
        )


def _go() -> None:
    draft = _draft()
    draft.collect()
    try:
        run = engine().train(TrainRequest(name=draft.values["name"], config=draft.config()))
    except WarpError as error:
        st.session_state["train-start-problem"] = [str(error)]
        return
    draft.rename("")
    st.session_state[MESSAGE] = f"{run.name} has been started"
    watch(run.name)
    show_runs()


def _toml(draft: Draft, looked: Looked) -> None:
    title, download = st.columns([3, 2], vertical_alignment="bottom")
    title.markdown("**Configuration**")
    if not looked.check.ok:
        st.caption("The TOML is shown again when what is marked in red is mended.")
        return
    name = draft.values["name"]
    download.download_button(
        "Download",
        looked.check.toml,
        file_name=f"{name}.toml",
        mime="application/toml",
        icon=":material/download:",
        key="train-download",
        on_click="ignore",
        width="stretch",
    )
    st.code(looked.check.toml, language="toml", height=520)
    st.caption("The same on a command line:")
    st.code(f"warp-core train {name}.toml --out runs/{name}", language="shell", wrap_lines=True)
