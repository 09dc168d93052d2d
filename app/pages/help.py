"""Help: a tour, the method in pictures, the words, the keys, what is not covered. It needs no engine."""

import dataclasses
from collections.abc import Sequence

import streamlit as st

from app.components.figures import figure
from app.glossary import GLOSSARY
from app.view import Pin, View, current_view
from warp_core.service.protocol import Place

__all__ = ["render"]

METHOD = (
    (
        "ema",
        "1. An anchor that follows",
        "Each policy is trained with REINFORCE on its reward, minus beta times the KL to an anchor. The anchor is a "
        "moving average of the policy itself: it allows more and more, without letting a single step go far.",
        r"\begin{gathered} r(x, y) - \beta \log \frac{\pi_\theta(y \mid x)}{\pi_\mathrm{ema}(y \mid x)} \\[6pt] "
        r"\theta_\mathrm{ema} \leftarrow (1 - \mu)\, \theta_\mathrm{ema} + \mu\, \theta \end{gathered}",
    ),
    (
        "slerp",
        "2. Spherical merging",
        "M policies are trained from one init. Their task vectors are nearly orthogonal, so a straight mean is shorter "
        "than each of them; SLERP keeps to the arc, with one angle per layer. More than two policies join one by one, "
        "the m-th with its weight over the sum of the weights so far.",
        r"\theta_\mathrm{init} + \frac{\sin((1 - \lambda)\,\Omega)}{\sin \Omega}\, \delta_1 + "
        r"\frac{\sin(\lambda\,\Omega)}{\sin \Omega}\, \delta_2",
    ),
    (
        "liti",
        "3. Back towards the start",
        "On the line between the start and the merge every eta is a model: reward is traded for KL, without training. "
        "This is the eta slider. Beyond 1 the line goes on; measure there, the reward can fall.",
        r"(1 - \eta)\, \theta_\mathrm{init} + \eta\, \theta_\mathrm{slerp}",
    ),
    (
        "iterations",
        "4. Again",
        "The LITI point at a small eta is the init of the next iteration: new policies start from it, a little better "
        "than the last ones did, and not much further from the SFT policy.",
        r"\theta_\mathrm{init}^{\,i+1} = (1 - \eta)\, \theta_\mathrm{init}^{\,i} + \eta\, \theta_\mathrm{slerp}^{\,i}",
    ),
    (
        "front",
        "5. The front",
        "All the merges over all eta make a front of reward against KL. Explore draws it as measured, and says what is "
        "predicted between the points; which point is best is yours to say.",
        r"\{ (1 - \eta)\, \theta_\mathrm{sft} + \eta\, \theta_\mathrm{slerp}^{\,I} \;:\; 0 \le \eta \le 1 \}",
    ),
)
"""Figure, heading, text, equation of each step; numbers and names are those of the paper."""

KEYS = (
    ("Tab, Shift+Tab", "from one control to the next and back"),
    ("arrows on a slider", "one small step; Page Up and Page Down a larger one, Home and End to its ends"),
    ("arrows in the plot", "from point to point; Enter sets the sliders to the one that has the focus"),
    ("Enter or Space", "press a button, open a list"),
    ("Esc", "close a list, a menu or a dialog; in a number field, take back what was typed"),
    ("Ctrl+Enter in a text", "take the text"),
    ("the browser's Back", "undo the last change of the view, or return to the page before"),
)

LIMITS = (
    "Points compare only when they were measured alike: the same prompts, samples, seed and KL estimator.",
    "A prediction is an estimate between measured points. Away from them, above all beyond eta 1, measure.",
    "A reward model is no judge of truth. High reward at high KL can be a policy that games it: read the texts.",
    "The angles are between task vectors of one init. Models that do not come from the same init are refused.",
    "One preview runs at a time per device. With several visitors jobs wait their turn; the strip at the left says how "
    "many come before yours.",
    "Everything stays between this browser, the app and its engine: nothing is fetched from or sent to anywhere else.",
)

SOURCE = (
    "The method is that of Rame et al. 2024, WARP: On the Benefits of Weight Averaged Rewarded Policies "
    "(arXiv 2406.16768)."
)


def render() -> None:
    """Draw the page."""
    with st.container(width=1120):
        st.title("Help", anchor=False)
        _tour()
        _method()
        _glossary()
        left, right = st.columns(2, gap="large")
        with left:
            _keys()
        with right:
            _limits()


def tour(view: View) -> Sequence[tuple[str, str, View, str]]:
    """Return the steps of the tour: page, label of its link, prepared view, what to do there."""
    low, high = (Place(iteration=view.iteration, eta=eta) for eta in (0.3, 0.8))
    clean = dataclasses.replace(view, pins=(), reference=None, budget=None, left="sft", right="end", notes=())
    return (
        (
            "explore",
            "Open a merge half way",
            dataclasses.replace(clean, place=Place(iteration=view.iteration, eta=0.5)),
            "Drag the eta slider: the marker runs along the curve. Let go, and the text of that very model appears, "
            "between that of the SFT policy and that of the full merge.",
        ),
        (
            "explore",
            "Set a budget of KL 10",
            dataclasses.replace(clean, place=high, budget=10.0),
            "The vertical line is a KL that you do not want to exceed. Drag it, and eta follows. Measure turns the "
            "prediction into a point with an error.",
        ),
        (
            "geometry",
            "Look at the angles",
            clean,
            "Task vectors of different runs are nearly orthogonal: that is why SLERP and LERP differ.",
        ),
        (
            "compare",
            "Compare two pins",
            dataclasses.replace(clean, place=high, pins=(Pin(place=low), Pin(place=high))),
            "Vote without seeing which is which; the preference matrix says what the votes add up to.",
        ),
        (
            "export",
            "Take a model home",
            dataclasses.replace(clean, place=low),
            "A folder that transformers and vLLM open, checked against what you saw.",
        ),
        (
            "train",
            "Train your own",
            clean,
            "Fill in the form, start, and watch the curves; the run shows up in Explore.",
        ),
        (
            "studies",
            "See what holds up",
            clean,
            "The experiments of the paper that were run here: which observations held, which did not, with intervals.",
        ),
    )


def _tour() -> None:
    st.subheader("In one minute", anchor=False)
    for number, (page, label, view, text) in enumerate(tour(current_view()), start=1):
        left, right = st.columns([2, 5], vertical_alignment="center")
        target = st.Page(render, title=page, url_path=page)
        left.page_link(
            target, label=f"{number}. {label}", icon=":material/arrow_forward:", query_params=view.to_query()
        )
        right.markdown(text)


def _method() -> None:
    st.subheader("The method in pictures", anchor=False)
    for name, heading, text, equation in METHOD:
        with st.container(border=True):
            left, right = st.columns(2, gap="large", vertical_alignment="center")
            with left:
                figure(name)
            with right:
                st.markdown(f"**{heading}**")
                st.markdown(text)
                st.latex(equation)
    st.caption(SOURCE)


def _glossary() -> None:
    st.subheader("Glossary", anchor=False)
    asked = st.text_input("Find a word", key="help-word", placeholder="for example eta", width=320)
    words = asked.casefold().split()
    found = {
        term: text for term, text in GLOSSARY.items() if all(word in f"{term} {text}".casefold() for word in words)
    }
    st.caption(f"{len(found)} of {len(GLOSSARY)} entries")
    if not found:
        st.text("No entry holds that. Try a shorter word.")
    half = (len(found) + 1) // 2
    entries = list(found.items())
    for column, part in zip(st.columns(2, gap="large"), (entries[:half], entries[half:]), strict=True):
        for term, text in part:
            column.markdown(f"**{term}**  \n{text}")


def _keys() -> None:
    st.subheader("Keys", anchor=False)
    for key, what in KEYS:
        left, right = st.columns([2, 3], vertical_alignment="center")
        left.markdown(f"**{key}**")
        right.markdown(what)


def _limits() -> None:
    st.subheader("Good to know", anchor=False)
    st.markdown("\n".join(f"- {line}" for line in LIMITS))
