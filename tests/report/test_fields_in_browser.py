"""Planes in the report: contours with paths, a surface to turn, logarithmic axes and marks, as a reader sees them."""

import json

import numpy as np
import pytest

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import Field, Line, Lines
from dynaxx.report import write_report

SIDE = np.linspace(-1.0, 1.0, 41)
BOWL = 1 + SIDE[None] ** 2 + 4 * SIDE[:, None] ** 2
LOW, BAD = [0x44, 0x01, 0x54], [0xD6, 0x33, 0x6C]


def panels():
    wall = np.where(SIDE[None] + SIDE[:, None] > 1.2, np.nan, BOWL)
    t = np.linspace(0, 1, 20)
    paths = (
        Line(label="checkpoints", x=-0.9 + 0.9 * t, y=0.8 * (1 - t)),
        Line(label="here", x=np.zeros(1), y=np.zeros(1)),
    )
    x = np.geomspace(1e-5, 1, 60)
    return (
        Field(title="Plane", x=SIDE, y=SIDE, values=wall, paths=paths, x_label="α · random 1", y_label="β · random 2",
              value_label="loss"),
        Field(title="Flat", x=SIDE, y=SIDE, values=np.full_like(BOWL, 2.0), x_label="α", y_label="β"),
        Field(title="Walls only", x=SIDE, y=SIDE, values=np.full_like(BOWL, np.nan), x_label="α", y_label="β"),
        Field(title="Decades", x=SIDE, y=SIDE, values=np.exp(2 * BOWL), scale="log", x_label="α", y_label="β"),
        Lines(title="Rates", lines=(Line(label="loss", x=x, y=3 + np.log10(x) ** 2),), x_label="learning rate",
              x_scale="log", marks={"suggested": 1e-3, "diverges": 0.3}),
    )  # fmt: skip


@pytest.fixture
def opened(browser, make, tmp_path):
    def show(**how):
        view = make(loss=([1, 2], [3.0, 2.0]))
        folder = view.folder / "charts"
        folder.mkdir()
        values = {"loss": Estimate(value=1.0, about="here")}
        chart = Chart(probe="slices", title="Net", values=values, panels=panels())
        (folder / "0000000002-slices.json").write_text(json.dumps(chart.to_dict()))
        browser.open(write_report([view], tmp_path / "report.html"), **how)
        assert browser.complaints == []
        return browser

    return show


def settled(browser):
    browser("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def box(browser, selector):
    query = f"document.querySelector({json.dumps(selector)})"
    browser(f"{query}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    settled(browser)
    return browser(f"(r => [r.left, r.top, r.width, r.height])({query}.getBoundingClientRect())")


def pixel(browser, selector, x, y):
    return browser(f"""(() => {{
      const card = document.querySelector({json.dumps(selector)});
      const [canvas, over] = [card.querySelector("canvas"), card.querySelector(".u-over").getBoundingClientRect()];
      const all = canvas.getBoundingClientRect();
      const at = [over.left - all.left + {x} * over.width, over.top - all.top + {y} * over.height];
      return [...canvas.getContext("2d").getImageData(...at.map(Math.round), 1, 1).data.slice(0, 3)];
    }})()""")


def card(title):
    return f"article[data-title='slices: {title}']"


def named(browser):
    browser("""document.querySelectorAll("article").forEach(a =>
      a.dataset.title = a.querySelector("h3").firstChild.textContent)""")


def press(browser, selector, label):
    browser(f"""[...document.querySelectorAll({json.dumps(selector + " button")})]
      .find(b => b.textContent === {json.dumps(label)}).click()""")
    settled(browser)


@pytest.mark.parametrize("dark", [False, True])
def test_contours_have_the_colours_of_their_values(opened, dark):
    browser = opened(dark=dark)
    named(browser)
    plane = card("Plane")
    assert np.abs(np.array(pixel(browser, plane, 0.53, 0.5)) - LOW).max() < 12  # beside the mark of the point
    assert pixel(browser, plane, 0.99, 0.02) == (BAD if not dark else [0xF0, 0x52, 0x7F])
    assert pixel(browser, plane, 0.99, 0.98) != pixel(browser, plane, 0.53, 0.5)
    keys = browser(f"[...document.querySelectorAll({json.dumps(plane + ' [data-key]')})].map(e => e.dataset.key)")
    assert keys == ["checkpoints", "here", "not finite"]
    assert "2 everywhere" in browser(f"document.querySelector({json.dumps(card('Flat') + ' .legend')}).textContent")


def test_hovering_reads_the_value(opened):
    browser = opened()
    named(browser)
    plane = card("Plane")
    left, top, width, height = box(browser, plane + " .u-over")
    browser.mouse("mouseMoved", left + 0.25 * width, top + 0.75 * height)
    settled(browser)
    tip = browser(f"[...document.querySelector({json.dumps(plane + ' .tooltip')}).children].map(e => e.textContent)")
    assert float(tip[-1].split()[-1]) == pytest.approx(1 + 0.25 + 4 * 0.25, rel=0.02)
    assert [float(part) for part in tip[-2].split(",")] == pytest.approx([-0.5, -0.5], abs=0.01)
    browser.mouse("mouseMoved", left + 0.985 * width, top + 0.02 * height)
    settled(browser)
    assert browser(f"document.querySelector({json.dumps(plane + ' .tooltip')}).lastChild.textContent") == "not finite"


@pytest.mark.parametrize("dark", [False, True])
def test_the_surface_turns(opened, dark):
    browser = opened(dark=dark)
    named(browser)
    plane = card("Plane")
    press(browser, plane, "3-D")
    surface = plane + " .surface canvas"
    drawn = f"""document.querySelector({json.dumps(surface)}).toDataURL()"""
    before = browser(drawn)
    colours = browser(f"""(() => {{
      const canvas = document.querySelector({json.dumps(surface)});
      const {{data}} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    }})()""")
    assert colours > 200
    left, top, width, height = box(browser, surface)
    browser.mouse("mousePressed", left + width / 2, top + height / 2, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseMoved", left + width / 2 + 80, top + height / 2 + 10, buttons=1)
    browser.mouse("mouseReleased", left + width / 2 + 80, top + height / 2 + 10, button="left", clickCount=1)
    settled(browser)
    turned = browser(drawn)
    assert turned != before
    browser(f"document.querySelector({json.dumps(plane + ' .surface')}).focus({{preventScroll: true}})")
    browser.key("ArrowLeft")
    assert browser(drawn) != turned
    for title in ("Decades", "Flat", "Walls only"):
        press(browser, card(title), "3-D")
    assert browser.complaints == []
    press(browser, plane, "3-D")
    assert browser(f"document.querySelector({json.dumps(plane + ' .u-over')}) !== null")


def test_a_logarithmic_axis_reads_rates(opened):
    browser = opened()
    named(browser)
    rates = card("Rates")
    left, top, width, height = box(browser, rates + " .u-over")
    browser.mouse("mouseMoved", left + 0.4 * width, top + 0.5 * height)
    settled(browser)
    words = browser(f"document.querySelector({json.dumps(rates + ' .at')}).textContent").split()
    assert words[:2] == ["learning", "rate"]
    assert float(words[2]) == pytest.approx(1e-3, rel=0.05)
    browser("navigator.clipboard.writeText = text => (window.copied = text, Promise.resolve())")
    press(browser, rates, "CSV")
    copied = [float(line.split(",")[0]) for line in browser("window.copied").splitlines()[1:]]
    assert copied == pytest.approx(np.geomspace(1e-5, 1, 60))
    press(browser, card("Plane"), "CSV")
    rows = browser("window.copied").splitlines()
    assert rows[0] == "α · random 1,β · random 2,loss"
    assert len(rows) == 1 + 41 * 41
    assert [float(v) for v in rows[1].split(",")] == pytest.approx([-1, -1, 6])
