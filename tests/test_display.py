"""What objects show in a notebook: well-formed HTML without scripts or references, and nothing unescaped."""

from __future__ import annotations

import html.parser

import pytest

import entropy_attn as ea
from entropy_attn import display

VOID = {"img", "br"}


class Reader(html.parser.HTMLParser):
    """Cells of the table, and the rest of the text; fails where elements do not nest."""

    def __init__(self, markup: str):
        super().__init__()
        self.open, self.rows, self.text, self.images = [], [], "", 0
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "img"}
        assert all(name == "style" or (name == "src" and value.startswith("data:image/png")) for name, value in attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.images += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.text += data + "\n"


def test_a_table_has_its_rows_escaped_and_rounded():
    rows = [{"layer": "<b>&", "mean": 1.23456789, "n": 12345678, "on": True}]
    found = Reader(display.table("A & B", rows, "a note"))
    assert found.rows == [["layer", "mean", "n", "on"], ["<b>&", "1.235", "12345678", "True"]]
    assert found.text == "A & B\na note\n"


def test_long_tables_and_values_say_that_they_are_cut():
    found = Reader(display.table("many", [{"value": "x" * 1000}] * (display.MAX_ROWS + 3)))
    assert len(found.rows) == 1 + display.MAX_ROWS and "and 3 more rows" in found.text
    assert all(len(value) == display.MAX_TEXT and value.endswith("…") for (value,) in found.rows[1:])


def test_without_rows_there_is_no_table():
    assert "<table" not in display.table("empty", [])


class Slow:
    """A value whose repr is long; it must not be cut in the middle of an entity."""

    def __repr__(self):
        return "<&>" * 1000


@pytest.mark.parametrize(
    ("policy", "setting", "value"),
    [
        (ea.scale.LogN(strength=0.5), "strength", "0.5"),
        (ea.scale.LogN(), "train_tokens", "'auto'"),
        (ea.scale.Fixed(), "value", "None"),
        (ea.scale.Constant(1.25), "factor", "1.25"),
        (ea.scale.YaRN(clamp=(None, 1.2)), "clamp", "(None, 1.2)"),
        (ea.scale.Steps(ea.scale.LogN(), 0, 4), "stop", "4"),
        (ea.scale.Layers({"attn1": ea.scale.Fixed(0.2)}), "otherwise", "None"),
        (ea.scale.Product(ea.scale.LogN(), ea.scale.Constant(1.1)), "policies", None),
        (ea.scale.LayerFactors({"mid": {16: 1.5}}), "missing", "'error'"),
        (ea.guidance.TSAM(alpha=3.0), "alpha", "3"),
        (ea.guidance.Custom(function=lambda maps, prompt: maps.sum()), "text_attention", "False"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_policies_and_guidances_show_every_setting(policy, setting, value):
    found = Reader(policy._repr_html_())
    rows = dict(found.rows[1:])
    assert set(rows) == set(type(policy).__dataclass_fields__)
    assert value is None or rows[setting] == value
    title, summary, _ = found.text.split("\n")
    assert title == type(policy).__name__ and summary == type(policy).__doc__.strip().split("\n")[0]


def test_a_policy_of_the_user_without_a_docstring_gets_no_borrowed_one():
    class Mine(ea.scale.LogN):
        pass

    found = Reader(Mine()._repr_html_())
    assert found.text == "Mine\n"


def test_a_huge_setting_is_cut():
    found = Reader(display.facts("a", {"b": display._shown(Slow())}))
    assert len(found.rows[1][1]) <= display.MAX_TEXT
