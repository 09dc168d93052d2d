import xml.etree.ElementTree as Xml

from bench.picture import write_page, write_picture
from bench.scale import Series, Spot

FOUND = [
    Series(
        part="merge",
        along="parameters",
        case="2 policies",
        expected="linear",
        spots=tuple(Spot(label=label, x=x, seconds=s) for label, x, s in [("tiny", 3e6, 0.02), ("<1B>", 1e9, 4.0)]),
        fitted=1,
    ),
    Series(
        part="front",
        along="batch",
        case="tiny",
        expected="linear",
        spots=(Spot(label="1", x=1, seconds=1e-5), Spot(label="8", x=8, seconds=1e-4)),
        fitted=2,
    ),
]


def test_every_measurement_is_a_dot_inside_the_picture(tmp_path):
    write_picture(tmp_path / "x.svg", FOUND)
    root = Xml.parse(tmp_path / "x.svg").getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    dots = [one for one in root.iter("{http://www.w3.org/2000/svg}circle") if one.attrib["r"] == "3.2"]
    assert len(dots) == 4
    assert all(0 < float(dot.attrib["cx"]) < width and 0 < float(dot.attrib["cy"]) < height for dot in dots)
    # 10 us to 100 us is a whole pane of one power of ten: the last dot stands at its top, the one before at its foot.
    assert float(dots[2].attrib["cy"]) - float(dots[3].attrib["cy"]) == 250
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"tiny", "<1B>", "10 ms", "1 s", "10 us", "merge", "front"} <= set(texts)


def test_nothing_measured_is_an_empty_picture(tmp_path):
    write_picture(tmp_path / "x.svg", [])
    assert Xml.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


def test_the_page_holds_every_series_and_asks_nobody(tmp_path):
    write_page(tmp_path / "x.html", FOUND)
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "merge: 2 policies" in page
    assert "front: tiny" in page
    assert '<script src="http' not in page
