"""The Export page: write a merged model as a folder that other programs load, and check that it is what was seen."""

from typing import Any, Literal

import streamlit as st

from app.engine import engine, session_id
from app.export.choosing import Models, choose_place, look_at_models
from app.export.recipes import DEFAULT_SHARD, command, default_name, no_adapter, shard_problem
from app.export.reports import Export, draw_exports, exports
from app.ui import empty_state, error_box, markdown_escaped
from app.view import View, current_view
from warp_core.errors import WarpError, WorkspaceError
from warp_core.service.places import place_label
from warp_core.service.protocol import ExportRequest, Place
from warp_core.workspace.paths import safe_name

__all__ = ["render"]

FORMS = {"full": "full model", "adapter": "adapter (PEFT)"}
DTYPES = {"": "as the init", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
VERIFY_HELP = (
    "Reloads the folder, compares every parameter with the model in memory, and lets both continue three prompts. It "
    "takes about as long as loading the model twice."
)
_OWN_NAME, _PROBLEM = "export-own-name", "export-problem"


def render() -> None:
    """Draw the page."""
    st.title("Export", anchor=False)
    view = current_view()
    if not view.has_selection:
        empty_state("Nothing is selected", "Choose a run, or an init and its policies, on the Explore page.")
        return
    left, right = st.columns([5, 6], gap="large")
    with left:
        st.caption(markdown_escaped(view.run or ", ".join(view.policies))[:300])
        models = look_at_models(view)
        if models is not None and models.iterations == 0:
            empty_state(
                "No finished iteration yet", "There is something to merge when all policies of one are finished."
            )
        elif models is not None:
            _form(view, models)
    with right:
        draw_exports()


def _form(view: View, models: Models) -> None:
    place = choose_place(view, models)
    if place is None:
        return
    name = _name(default_name(view.selection, place))
    name_wrong = _name_problem(name)
    if name_wrong:
        _problem(name_wrong)
    listed = exports()
    is_busy = any(one.is_going_on for one in listed)
    is_there = name in {one.name for one in listed if one.is_done}
    if is_there:
        st.caption("Exported under this name in this session; another name exports it again.")
    form, dtype, shard, shard_wrong = _files(place, models)
    verify = st.toggle("Read it back and compare", value=True, key="export-verify", help=VERIFY_HELP)
    out = f"{engine().status().workspace}/exports/{name}"
    st.caption("Target folder, on the engine's machine")
    st.code(out, language=None, wrap_lines=True)
    for problem in st.session_state.pop(_PROBLEM, []):
        error_box(problem)
    ready = name_wrong is None and shard_wrong is None and not is_there and not is_busy
    asked = {"name": name, "place": place, "form": form, "dtype": dtype, "max_shard_size": shard, "verify": verify}
    pressed = st.button(
        "Export",
        key="export-go",
        type="primary",
        width="stretch",
        disabled=not ready,
        help="Wait for the export that is being written." if is_busy else None,
    )
    # Not in a callback: its arguments would be those of the run before, without a name that was typed just now.
    if pressed and ready:
        _submit(view, models, out, asked)
        st.rerun()


def _name(default: str) -> str:
    """The name of the folder: it follows the model until somebody has written another one, which then stays."""
    own = st.session_state.get(_OWN_NAME, "")
    # Another default is another widget: a value set from outside would get lost in a hurry.
    name = st.text_input("Name", own or default, key=f"export-name.{default}", max_chars=100).strip()
    st.session_state[_OWN_NAME] = "" if name == default else name
    return name


def _name_problem(name: str) -> str | None:
    try:
        safe_name(name)
    except WorkspaceError as error:
        return str(error)
    return None


def _problem(problem: str) -> None:
    st.markdown(f":red[:small[{markdown_escaped(problem)}]]")


def _files(place: Place, models: Models) -> tuple[Literal["full", "adapter"], str | None, str, str | None]:
    """Form, dtype, shard size, and what is wrong with that."""
    why_not = no_adapter(place, kinds=models.kinds)
    forms = ["full"] if why_not else list(FORMS)
    if st.session_state.get("export-form") not in forms:
        st.session_state["export-form"] = "full"
    form_at, dtype_at = st.columns(2)
    form = form_at.selectbox("Form", forms, key="export-form", format_func=lambda one: FORMS[one])
    dtype = dtype_at.selectbox("Dtype", list(DTYPES), key="export-dtype", format_func=lambda one: DTYPES[one])
    if why_not:
        st.caption(why_not)
    if form == "adapter":
        st.caption("A LoRA adapter over the base model: exact, and small. It is loaded on top of the base with PEFT.")
        return "adapter", dtype or None, DEFAULT_SHARD, None
    size = "A size such as 5GB or 200MB; a larger model is written as several files"
    shard = st.text_input("Largest file", DEFAULT_SHARD, key="export-shard", help=size).strip()
    problem = shard_problem(shard)
    if problem:
        _problem(problem)
    return "full", dtype or None, shard, problem


def _submit(view: View, models: Models, out: str, asked: dict[str, Any]) -> None:
    request = ExportRequest(session=session_id(), selection=view.selection, **asked)
    try:
        job = engine().submit(request)
    except WarpError as error:
        st.session_state[_PROBLEM] = [error]
        return
    exports().insert(
        0,
        Export(
            job_id=job.id,
            name=request.name,
            model=f"{place_label(request.place)}, {FORMS[request.form]}",
            command=command(request, run_path=models.path, out=out, config=models.config),
        ),
    )
