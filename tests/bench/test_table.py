import pytest

from bench.table import HEAD, line_of, number, table_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (0.1234, "0.123"),
        (12.345, "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (-3.14159, "-3.14"),
        (0.000012, "0.000012"),
        (1e-12, "1e-12"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_line_holds_the_row_and_cannot_break_the_table(rows):
    line = r"| 135M \| fp32 | wall time | 1.25 s | mergekit | 6.5 x | >= 6 x | yes | two lines |"
    assert line_of(rows[0]) == line
    assert line_of(rows[1]) == "| 11 etas | wall time | 30 s |  |  |  |  |  |"


def test_every_bench_has_a_table_of_its_own(rows):
    text = table_of([*rows, rows[0]])
    assert text.count("### ") == text.count(HEAD) == 2
    assert text.index("### merge") < text.index("### front")
    assert text.count("135M") == 2
