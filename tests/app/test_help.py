"""The help page: every link leads somewhere, every word of the app is there, every equation is whole."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.components.figures import FOLDER, NAMES
from app.glossary import GLOSSARY
from app.main import PAGES
from app.pages import help as page_module
from app.pages.help import METHOD, tour
from app.view import Pin, View
from tests.app.conftest import OpenPage
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import Place

TERMS = """policy SFT init anchor task vector SLERP LERP LITI eta lambda beta mu KL standard error dominated hypervolume
prediction budget pin reference completion prompt reward front iteration run merge vote judge diversity"""


def texts(page) -> str:
    return "\n".join(one.value for one in page.markdown)


def test_it_stands_without_an_engine(open_page: OpenPage, fake: FakeEngine):
    fake.down = True
    page = open_page("help")
    assert not page.exception
    assert page.title[0].value == "Help"
    assert [one.value for one in page.subheader] == [
        "In one minute",
        "The method in pictures",
        "Glossary",
        "Keys",
        "Good to know",
    ]


def test_the_tour_leads_to_pages_that_there_are():
    view = View(run="demo-run", place=Place(iteration=2, eta=0.1), pins=(Pin(place=Place(eta=1)),))
    steps = tour(view)
    assert {page for page, _, _, _ in steps} == set(PAGES) - {"help"}
    for _, label, prepared, text in steps:
        assert View.from_query(prepared.to_query()) == prepared, label
        assert prepared.run == "demo-run"
        assert prepared.iteration == 2
        assert text.endswith(".")


def test_the_tour_is_numbered(open_page: OpenPage):
    labels = [one.proto.label for one in open_page("help").get("page_link")]
    assert [label.split(". ")[0] for label in labels] == list("1234567")


@pytest.mark.parametrize("term", TERMS.split())
def test_the_glossary_knows_the_words(term: str):
    assert any(term.casefold() in entry.casefold() for entry in GLOSSARY)


def test_entries_are_sentences():
    for entry, text in GLOSSARY.items():
        assert text[0].isupper() or text.startswith("`"), entry
        assert text.endswith("."), entry
        assert len(text) < 330, entry
        assert "_" not in text.replace("theta_sft", "").replace("theta_init", ""), f"{entry}: Markdown would read it"


def test_words_can_be_found(open_page: OpenPage):
    page = open_page("help")
    assert f"{len(GLOSSARY)} of {len(GLOSSARY)} entries" in [one.value for one in page.caption]
    page.text_input[0].input("Hyper area").run()
    assert f"1 of {len(GLOSSARY)} entries" in [one.value for one in page.caption]
    assert "**hypervolume**" in texts(page)
    assert "**judge**" not in texts(page)
    page.text_input[0].input("zebra").run()
    assert [one.value for one in page.text] == ["No entry holds that. Try a shorter word."]


def test_every_step_has_its_picture_and_equation(open_page: OpenPage):
    assert tuple(name for name, *_ in METHOD) == NAMES
    page = open_page("help")
    assert len(page.latex) == len(METHOD)
    for _, _, _, equation in METHOD:
        assert equation.count("{") == equation.count("}")


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_whole_and_take_the_theme(name: str):
    source = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    tree = ElementTree.fromstring(source)
    assert tree.attrib["aria-label"]
    assert tree.attrib["role"] == "img"
    _, _, width, height = (float(part) for part in tree.attrib["viewBox"].split())
    css = (FOLDER / "figures.css").read_text(encoding="utf-8")
    for node in tree.iter():
        assert not {"style", "fill", "stroke", "onload"} & node.attrib.keys(), "colours are the theme's"
        assert node.tag in {"svg", "path", "circle", "text"}
        for one in node.attrib.get("class", "").split():
            assert f".{one}" in css, one
        if node.tag == "text":
            assert 0 <= float(node.attrib["x"]) <= width
            assert 0 <= float(node.attrib["y"]) <= height
    assert not re.findall(r"#[0-9a-fA-F]{3,6}\b(?!;)", css), "no colour of its own"
    assert "http" not in source


def test_the_source_of_the_page_is_plain():
    source = Path(page_module.__file__).read_text(encoding="utf-8")
    assert "unsafe_allow_html" not in source
    assert "http" not in source
