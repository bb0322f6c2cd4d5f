"""The report as a reader sees it: pixels, pointer, keys and what the browser complains of."""

import json
import time

import numpy as np
import pytest

from dynaxx.report import write_report

HOSTILE = "</script><img src=x onerror=window.pwned=1><b>$x$</b>"
VIRIDIS_LOW, VIRIDIS_HIGH, BAD = [0x44, 0x01, 0x54], [0xFD, 0xE7, 0x25], [0xD6, 0x33, 0x6C]

BOX = "(r => [r.left, r.top, r.width, r.height])(document.querySelector({0}).getBoundingClientRect())"
PIXEL = """(([x, y]) => {{
  const canvas = document.querySelector({0} + " canvas");
  const over = document.querySelector({0} + " .u-over").getBoundingClientRect();
  const all = canvas.getBoundingClientRect();
  const ratio = canvas.width / all.width;
  const [left, top] = [over.left - all.left + x * over.width, over.top - all.top + y * over.height];
  return [...canvas.getContext("2d").getImageData(left * ratio, top * ratio, 1, 1).data.slice(0, 3)];
}})({1})"""


def pixel(browser, selector, x, y):
    """The colour at a share of a plot's width and height."""
    return browser(PIXEL.format(json.dumps(selector), json.dumps([x, y])))


def box(browser, selector):
    browser(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    return browser(BOX.format(json.dumps(selector)))


def settled(browser):
    browser("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def texts(browser, selector):
    return browser(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def drag(browser, selector, start, end):
    left, top, width, height = box(browser, selector)
    y = top + height / 2
    browser.mouse("mouseMoved", left + width * start, y)
    browser.mouse("mousePressed", left + width * start, y, button="left", buttons=1, clickCount=1)
    for share in np.linspace(start, end, 5):
        browser.mouse("mouseMoved", left + width * share, y, buttons=1)
    browser.mouse("mouseReleased", left + width * end, y, button="left", clickCount=1)
    settled(browser)


@pytest.fixture(name="pages", scope="module")
def _pages(tmp_path_factory):
    """Reports by their runs' folders: those of the large runs are written once."""
    folder, written = tmp_path_factory.mktemp("reports"), {}

    def page(views):
        key = tuple(view.folder for view in views)
        if key not in written:
            written[key] = write_report(views, folder / f"{len(written)}.html")
        return written[key]

    return page


@pytest.fixture(name="report")
def _report(browser, pages):
    def opened(*views, **how):
        browser.open(pages(views), **how)
        return browser

    return opened


@pytest.mark.parametrize(
    ("run", "dark"), [("healthy", False), ("healthy", True), ("diverged", True), ("huge", False), ("only_loss", True)]
)
def test_everything_is_drawn_without_a_complaint_or_a_request(report, request, run, dark):
    browser = report(request.getfixturevalue(run), dark=dark)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:,"))] == []
    assert len([url for url in browser.requests if url.startswith("file:")]) == 1
    assert browser.state()["dark"] is dark
    colours = browser("""[...document.querySelectorAll("canvas")].map(canvas => {
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    })""")
    assert len(colours) == (1 if run == "only_loss" else 32)
    assert min(colours) > 20  # blank ones have one colour
    background = browser("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(14, 17, 22)" if dark else "rgb(245, 246, 248)")


def test_sections_follow_the_figures_and_reasons_close_the_page(report, only_loss):
    browser = report(only_loss)
    assert texts(browser, "main section > h2") == ["Diagnosis", "Loss", "About this run", "Not shown, and why"]
    assert texts(browser, "nav a") == texts(browser, "main section > h2")
    assert "no gradient was measured in this run" in texts(browser, "#not-shown dd")


def test_a_heat_map_has_the_colours_of_its_values(report, make):
    values = np.array([[1.0, 1.0, 100.0], [1.0, 100.0, np.inf], [1.0, 10.0, 100.0], [1.0, 10.0, 100.0]])
    browser = report(make(grad_norm=([1, 2, 3, 4], values, "layer", ("a", "b", "c"))))
    heat = "#gradients .heat"

    def near(cell, colour):
        return np.abs(np.array(pixel(browser, heat, *cell)) - colour).max() <= 3

    assert near((0.125, 1 / 6), VIRIDIS_LOW)  # layer a, first on top
    assert near((0.375, 3 / 6), VIRIDIS_HIGH)
    assert near((0.875, 5 / 6), VIRIDIS_HIGH)
    assert near((0.375, 5 / 6), BAD)
    assert near((0.875, 3 / 6), [0x21, 0x91, 0x8C])  # 10 lies in the middle of 1 and 100 on a log scale
    browser(f"[...document.querySelectorAll('{heat} button')].find(b => b.textContent === 'log').click()")
    settled(browser)
    assert not near((0.875, 3 / 6), [0x21, 0x91, 0x8C])
    assert near((0.875, 5 / 6), VIRIDIS_HIGH)


def test_hovering_tells_step_layer_and_value_and_moves_every_cross_hair(report, healthy):
    browser = report(healthy)
    selector = "#updates .heat .u-over"
    left, top, width, height = box(browser, selector)
    browser.mouse("mouseMoved", left + width * 0.5, top + height * 2.5 / 22)
    settled(browser)
    step, layer, value = browser(
        "[...document.querySelector('#updates .heat .tooltip').children].map(e => e.textContent)"
    )
    row = healthy["update_ratio"]
    at = int(np.searchsorted(row.steps, browser.state()["cursor"], side="right")) - 1
    assert step == f"step {row.steps[at]}"
    assert layer == "blocks.0.attention.value"
    assert float(value) == pytest.approx(float(row.values[at, 2]), rel=0.01)
    assert abs(browser.state()["cursor"] - 1505) < 10
    places = browser("""[...document.querySelectorAll("section:not(#trajectory) .u-over")].map(over =>
      new DOMMatrix(getComputedStyle(over.querySelector(".u-cursor-x")).transform).m41 / over.clientWidth)""")
    assert len(places) > 20
    assert np.ptp(places) < 0.01
    loss = texts(browser, "#loss .legend .at")
    assert loss == [f"step {round(browser.state()['cursor'])}"]


def test_dragging_zooms_all_charts_and_a_double_click_resets(report, healthy):
    browser = report(healthy)
    full = browser.state()["view"]
    drag(browser, "#gradients .heat .u-over", 0.25, 0.5)
    low, high = browser.state()["view"]
    assert low == pytest.approx(full[0] + 0.25 * (full[1] - full[0]), abs=10)
    assert high == pytest.approx(full[0] + 0.5 * (full[1] - full[0]), abs=10)
    assert texts(browser, ".reset")[0] == f"steps {round(low)}–{round(high)} ✕"
    left, top, width, height = box(browser, "#loss .u-over")
    for count in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, left + width / 2, top + height / 2, button="left", clickCount=count)
    settled(browser)
    assert browser.state()["view"] == full
    assert browser("document.querySelector('.reset').hidden")


def test_keys_do_what_the_pointer_does(report, healthy):
    browser = report(healthy)
    browser("document.querySelector('#gradients .heat .plot').focus({preventScroll: true})")
    for _ in range(3):
        browser.key("ArrowRight")
    low, high = browser.state()["view"]
    assert browser.state()["cursor"] == pytest.approx(low + 0.03 * (high - low))
    browser.key("ArrowDown")
    said = browser("document.querySelector('#gradients .heat [role=status]').textContent")
    assert said.split(", ")[1] == "blocks.0.attention.query"
    browser.key("+")
    assert np.ptp(browser.state()["view"]) == pytest.approx((high - low) / 2, rel=0.05)
    browser.key("0")
    assert browser.state()["view"] == [low, high]
    browser("document.querySelector('#loss .plot').focus({preventScroll: true})")
    browser.key("ArrowRight")
    assert "training, smoothed" in browser("document.querySelector('#loss [role=status]').textContent")


def test_csv_and_png(report, make):
    values = np.array([[1.0, np.nan], [2.0, 4.0]])
    browser = report(make(grad_norm=([1, 2], values, "layer", ("=1+1", 'b,"')), loss=([1, 2], [3.0, np.nan])))
    browser("navigator.clipboard.writeText = text => (window.copied = text, Promise.resolve())")
    browser("HTMLAnchorElement.prototype.click = function () { window.saved = this.download }")

    def press(section, label):
        browser(f"[...document.querySelectorAll('#{section} button')].find(b => b.textContent === '{label}').click()")

    press("loss", "CSV")
    assert browser("window.copied") == "step,training\n1,3\n2,\n"
    browser("document.querySelector('#gradients .heat .tools').children[1].click()")
    assert browser("window.copied").splitlines() == ['step,\'=1+1,"b,"""', "1,1,Infinity", "2,2,4"]
    press("loss", "PNG")
    time.sleep(0.3)
    assert browser("window.saved") == "Loss.png"


def test_the_theme_can_be_switched_and_redraws(report, healthy):
    browser = report(healthy)
    curve = "[...document.querySelector('#loss canvas').getContext('2d').getImageData(0, 0, 1300, 240).data].join()"
    before = browser(curve)
    browser("[...document.querySelectorAll('.head button')].at(-1).click()")
    settled(browser)
    assert browser.state()["dark"]
    assert browser("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
    assert browser(curve) != before
    browser.open(browser("location.pathname"))
    assert browser.state()["dark"]  # the choice is kept
    browser("localStorage.clear()")


def test_curves_can_be_hidden_and_stay_so_on_another_scale(report, healthy):
    browser = report(healthy)
    browser("document.querySelectorAll('#loss .legend button')[1].click()")
    browser("[...document.querySelectorAll('#loss .tools button')][0].click()")
    assert browser("document.querySelectorAll('#loss .legend button')[1].getAttribute('aria-pressed')") == "false"
    assert browser("document.querySelectorAll('#loss .tools button')[0].getAttribute('aria-pressed')") == "true"


def test_several_runs_overlay_curves_and_share_a_colour_scale(report, healthy, diverged):
    browser = report(healthy, diverged)
    assert browser.complaints == []
    labels = browser("[...document.querySelectorAll('#loss .legend [data-key]')].map(e => e.dataset.key)")
    assert "healthy · training, smoothed" in labels
    assert "diverged · validation" in labels
    assert texts(browser, "#gradients .heat h3 .run")[:2] == ["healthy", "diverged"]
    scales = texts(browser, "#gradients .heat .legend > .key:first-child")
    assert scales[0] == scales[1]
    assert len(texts(browser, ".summary")) == 2


def inked(browser, card, step, beside):
    """How many pixels of the line's blue are in the column `beside` CSS pixels from the place of a step of 300."""
    return browser(f"""(() => {{
      const card = [...document.querySelectorAll("article")].find(a => a.querySelector("h3").textContent === "{card}");
      const [canvas, over] = [card.querySelector("canvas"), card.querySelector(".u-over").getBoundingClientRect()];
      const all = canvas.getBoundingClientRect();
      const ratio = canvas.width / all.width;
      const x = over.left - all.left + ({step} - 1) / 299 * over.width + {beside};
      const [top, height] = [(over.top - all.top) * ratio, over.height * ratio];
      const column = canvas.getContext("2d").getImageData(x * ratio, top, 1, height).data;
      return column.reduce((n, v, i) => n + (i % 4 === 0 && v < 60 && column[i + 2] > 120 ? 1 : 0), 0);
    }})()""")


def test_what_is_measured_rarely_is_marked_and_said(report, make):
    """A line between two measurements would pass for a value at every step."""
    all_steps = np.arange(1, 301)
    columns = {
        "loss": (all_steps, all_steps / 300),
        "early": ([20, 60], [1.0, 2.0]),
        "spread": ([20, 290], [1.0, 2.0]),
        "every": (all_steps, np.ones(300)),
    }
    browser = report(make(**columns))
    assert browser.complaints == []
    notes = dict(
        browser("""[...document.querySelectorAll("#metrics article")].map(card =>
          [card.querySelector("h3").textContent, card.querySelector(".note")?.textContent ?? ""])""")
    )
    assert notes["early"].endswith("Measured 2 times, last at step 60.")
    assert "Measured" not in notes["spread"] + notes["every"]
    assert inked(browser, "early", 20, -1.5) > 0  # a line alone begins at the step
    assert inked(browser, "early", 20, -6) == 0
    assert 0 < inked(browser, "every", 150, 0) <= 4  # no thicker than a line


def test_powers_of_ten_keep_their_zeros(report, make):
    steps = [1, 2, 3]
    columns = {"large": [2.5e10] * 3, "small": [1.25e-20] * 3, "nothing": [0.0] * 3}
    browser = report(make(loss=(steps, [3.0, 2.0, 1.0]), **{name: (steps, v) for name, v in columns.items()}))
    assert browser.complaints == []
    shown = browser("""[...document.querySelectorAll("#metrics article")].map(card =>
      [card.querySelector("h3").textContent, card.querySelector(".legend b").textContent])""")
    assert dict(shown) == {"large": "2.5e10", "small": "1.25e-20", "nothing": "0"}


def test_names_of_strangers_are_text(report, make):
    view = make(
        [{"kind": "warning", "step": 1, "message": HOSTILE}],
        lr=([1, 2], [[1.0, 2.0]] * 2, "group", (HOSTILE, "b")),
        grad_norm=([1, 2], [[1.0, 2.0]] * 2, "layer", (HOSTILE, "b")),
    )
    browser = report(view)
    assert browser.complaints == []
    assert browser("window.pwned === undefined && document.images.length === 0")
    assert HOSTILE in texts(browser, "#history td")
    assert any(HOSTILE in text for text in texts(browser, "#learning_rate .key"))


@pytest.mark.parametrize("values", [[1.0], [np.nan, np.nan], [0.0, 0.0], [-1e300, 1e300], [np.inf, 1.0]])
def test_odd_losses_are_drawn(report, make, values):
    browser = report(make(loss=(range(1, len(values) + 1), values)))
    assert browser.complaints == []
    assert browser("document.querySelectorAll('#loss canvas').length") == 1


def test_a_locale_that_intl_refuses_is_survived(browser, report, healthy):
    broken = "Object.defineProperty(Navigator.prototype, 'language', {get: () => 'en-US@posix', configurable: true})"
    number = browser.call("Page.addScriptToEvaluateOnNewDocument", source=broken)["identifier"]
    try:
        assert report(healthy).complaints == []
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=number)


def test_a_narrow_window_does_not_scroll_sideways(report, healthy):
    browser = report(healthy, width=420)
    assert browser("document.documentElement.scrollWidth <= innerWidth")
    browser.open(browser("location.pathname"), width=1400)


def test_printing_is_on_white(report, healthy):
    browser = report(healthy, dark=True)
    printed = browser.call("Page.printToPDF", printBackground=False)
    assert len(printed["data"]) > 100_000
    assert browser.state()["dark"]  # and back
