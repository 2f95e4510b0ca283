"""The page in a real browser: it loads without requests or errors, and what one chart selects, the others show."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("altair", reason="needs the extra [explore]")
pytest.importorskip("vl_convert", reason="needs the extra [explore]")

from entropy_attn.explore import WordMaps, read_profile, write_page
from tests.support.browser import Browser, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="needs a Chromium on the path")

WORDS = ("a", "red", "circle", "and", "a", "blue", "square")
# The middle of the drawn rectangle whose datum has these values, in pixels of the page
WHERE = """
function where(view, wanted) {
  const box = view.container().querySelector("canvas").getBoundingClientRect(), origin = view.origin();
  let found = null;
  const walk = (mark, x, y) => mark.items.forEach(item => {
    if (item.items) item.items.forEach(inner => walk(inner, x + (item.x || 0), y + (item.y || 0)));
    else if (mark.marktype === "rect" && item.datum && item.fill !== "transparent"
             && Object.entries(wanted).every(([key, value]) => item.datum[key] === value))
      found = [box.left + origin[0] + x + item.x + item.width / 2, box.top + origin[1] + y + item.y + item.height / 2];
  });
  walk(view.scenegraph().root, 0, 0);
  return found;
}
"""


@pytest.fixture
def maps():
    """Word w is attended to most in cell 3 w of 4 x 6."""
    values = np.random.default_rng(0).uniform(0.001, 0.01, (len(WORDS), 4, 6))
    for word in range(len(WORDS)):
        values[word].flat[3 * word] = 0.2 + 0.01 * word
    return values


@pytest.fixture
def page(folder, maps, tmp_path):
    out = tmp_path / "page.html"
    write_page(out, [read_profile(folder)], [WordMaps("words", WORDS, {"mean": maps, "2": maps[::-1]})])
    browser = Browser(tmp_path / "browser", height=1700)
    try:
        browser.open(out, "window.views && window.views.chart0 && window.views.chart1")
        browser.evaluate(f"window.where = {WHERE.strip()}; 1")
        yield browser
    finally:
        browser.close()


def shown(browser, chart, kind, **wanted):
    """The data of all drawn items of a kind."""
    code = f"""
    (() => {{
      const found = [];
      const walk = mark => mark.items.forEach(item => {{
        if (item.items) item.items.forEach(walk);
        if (mark.marktype === {json.dumps(kind)} && item.datum) found.push(item.datum);
      }});
      walk(window.views.{chart}.scenegraph().root);
      return JSON.parse(JSON.stringify(found, (key, value) => key === "values" ? undefined : value));
    }})()"""
    found = browser.evaluate(code)
    return [each for each in found if all(each.get(name) == value for name, value in wanted.items())]


def middle(browser, chart, **wanted):
    x, y = browser.evaluate(f"where(window.views.{chart}, {json.dumps(wanted)})")
    return x, y


def test_the_page_is_linked_and_asks_for_nothing(page, maps):
    browser = page
    assert [url[:5] for url in browser.requests if not url.startswith("data:")] == ["file:"]

    # A click on a head: its steps, its layer in the other charts, and its maps
    browser.click(*middle(browser, "chart0", layer="up2.1.0", head=2, size="128x128", policy="off"))
    browser.wait("window.views.chart0.signal('chosen').layer[0] === 'up2.1.0'")
    points = shown(browser, "chart0", "symbol", size="128x128", head=2)
    assert {(each["layer"], each["policy"]) for each in points} == {("up2.1.0", "off"), ("up2.1.0", "logn")}
    tokens = 32 * 32
    for each in points:
        slope, intercept = {"off": (0.6, 0.4), "logn": (0.5, 0.8)}[each["policy"]]
        expected = slope * np.log(tokens) + intercept + 0.05 + 0.05 * (each["step"] - 1.5)
        assert each["entropy"] == pytest.approx(expected, rel=1e-3)
    cells = [each for each in shown(browser, "chart0", "rect") if "cell_codes" in each]
    assert len(cells) == 2 * tokens and {each["layer"] for each in cells} == {"up2.1.0"}
    assert {each["step"] for each in cells} == {3}

    # The slider: another step of the maps
    browser.evaluate("window.views.chart0.signal('step', 1).runAsync().then(() => 1)")
    cells = [each for each in shown(browser, "chart0", "rect") if "cell_codes" in each]
    assert len(cells) == 2 * tokens and {each["step"] for each in cells} == {1}

    # Pointing at a place: the words are ranked there
    for cell in (3 * 1, 3 * 5):
        x, y = middle(browser, "chart1", cell=cell)
        browser.move(x, y)
        browser.wait(f"window.views.chart1.signal('place').cell[0] === {cell}")
        bars = {each["word"]: each["attention"] for each in shown(browser, "chart1", "rect") if "attention" in each}
        labels = ["a (1)", "red", "circle", "and", "a (2)", "blue", "square"]
        assert list(bars) and set(bars) == set(labels)
        for index, label in enumerate(labels):
            assert bars[label] == pytest.approx(maps[index].flat[cell], rel=1e-3)
        assert max(bars, key=bars.get) == labels[cell // 3]

    # Another word: its heat
    browser.evaluate("window.views.chart1.signal('word', 'blue').runAsync().then(() => 1)")
    heat = {each["cell"]: each for each in shown(browser, "chart1", "rect") if "row" in each}
    assert {each["word"] for each in heat.values()} == {"blue"} and len(heat) == 24
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
