"""The report as a file: self-contained, safe, sized, and built from the committed sources."""

import base64
import hashlib
import html.parser
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from dynaxx import figures
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.report import write_report
from dynaxx.report._page import static
from dynaxx.report._payload import Block, names, to_json
from dynaxx.report._summary import duration, summary
from dynaxx.runlog import open_run

REPOSITORY = Path(__file__).parents[2]
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>$\\frac{1}{0}$"


class Parts(html.parser.HTMLParser):
    """Everything in a page that could load or run something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = dict(attributes).get("id", "bundle") if tag == "script" else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data


@pytest.fixture(name="page", scope="module")
def _page(diverged, tmp_path_factory):
    return write_report(diverged, tmp_path_factory.mktemp("report") / "report.html").read_text()


def fact(view, label):
    (found,) = [f for f in summary(view) if f.label == label]
    return found


def test_nothing_in_the_page_points_elsewhere(page):
    parts = Parts(page)
    for tag, attributes in parts.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form", "audio", "video", "source", "track"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}:
                assert value.startswith(("#", "data:,")), (tag, name, value)
            assert not name.startswith("on")
    assert not re.search(r"url\((?!#)", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert "@import" not in page


def test_only_the_bundle_may_run_and_nothing_may_be_loaded(page):
    parts = Parts(page)
    (policy,) = [a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    digest = base64.b64encode(hashlib.sha256(parts.scripts["bundle"].encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}


def test_the_payload_is_what_the_figures_say(page, diverged):
    parts = Parts(page)
    content = json.loads(parts.scripts["payload"])
    block = zlib.decompress(base64.b64decode(parts.scripts["arrays"]))
    (run,) = content["runs"]
    drawn = {f.name: f for f in figures.data(diverged)}
    shown = [f["name"] for f in run["figures"] if f["name"] != "diagnosis"]  # the report's own section
    assert shown == [name for name, f in drawn.items() if f.panels]
    assert {m["reason"] for m in run["missing"]} == {f.reason for f in drawn.values() if f.reason}
    for figure in drawn.values():
        for name, array in figure.arrays.items():
            place = run["arrays"][name]
            assert place["offset"] % 8 == 0
            back = np.frombuffer(block, "<" + place["type"], place["length"], place["offset"])
            assert np.array_equal(back, array.ravel(), equal_nan=True)


def test_names_of_strangers_cannot_leave_their_place(make, tmp_path):
    events = [{"kind": "warning", "step": 1, "message": HOSTILE}]
    view = make(
        events,
        loss=([1, 2], [1.0, 0.5]),
        lr=([1, 2], [[1.0, 2.0]] * 2, "group", (HOSTILE, "b")),
        grad_norm=([1, 2], [[1.0, 2.0]] * 2, "layer", (HOSTILE, "b")),
    )
    page = write_report(view, tmp_path / "report.html").read_text()
    parts = Parts(page)
    assert [tag for tag, _ in parts.tags if tag == "script"] == ["script"] * 3
    assert not any("onerror" in attributes for _, attributes in parts.tags)
    drawn = {f["name"]: f["panels"] for f in json.loads(parts.scripts["payload"])["runs"][0]["figures"]}
    assert drawn["history"][0]["rows"] == [["1", "warning", HOSTILE]]
    assert drawn["learning_rate"][0]["lines"][0]["label"] == HOSTILE


def test_a_hostile_folder_name_is_escaped(healthy_synthetic, tmp_path):
    view = healthy_synthetic.write(tmp_path / "<b>&run")
    page = write_report(view, tmp_path / "report.html").read_text()
    assert "<title>Dynaxx: &lt;b&gt;&amp;run</title>" in page
    assert "<b>&run" not in page


def test_json_cannot_end_its_element():
    text = to_json(["</script>", "<!--", "\u2028", "]]>"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script>", "<!--", "\u2028", "]]>"]
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))


def test_without_scripts_the_loss_is_there(page):
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    assert "Allow scripts" in plain
    assert "<svg" in plain
    assert "not finite since step 1,401" in plain
    assert len(plain) < 250_000


def test_sizes(page, huge, only_loss, tmp_path):
    assert len(static("bundle.js")) < 120_000
    assert len(page) < 600_000
    assert write_report(only_loss, tmp_path / "small.html").stat().st_size < 150_000
    assert write_report(huge, tmp_path / "huge.html").stat().st_size < 5_000_000


def test_equal_arrays_are_stored_once():
    block = Block()
    first = block.add(np.arange(5, dtype=np.float64))
    assert block.add(np.arange(5, dtype=np.float64)) is first
    assert block.add(np.arange(5, dtype=np.uint16))["offset"] == 40
    assert block.add(np.array([1.0]))["offset"] == 56
    assert len(zlib.decompress(block.compressed())) == 64


def test_the_same_run_gives_the_same_bytes(healthy, tmp_path):
    first, second = (write_report(healthy, tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_the_bundle_was_built_from_the_committed_sources():
    sources = REPOSITORY / "frontend"
    digest = hashlib.sha256()
    for name in ["package-lock.json", "build.mjs", *(f"src/{p.name}" for p in sorted((sources / "src").iterdir()))]:
        digest.update(f"{name}\n".encode() + (sources / name).read_bytes())
    stated = re.search(r"sources ([0-9a-f]{64})", static("bundle.js"))
    assert stated is not None
    assert stated[1] == digest.hexdigest(), "the bundle is stale: run frontend/build and commit what it makes"


def test_the_lock_file_names_no_download_address():
    assert "resolved" not in (REPOSITORY / "frontend" / "package-lock.json").read_text()


def test_the_licences_of_what_is_bundled_ship():
    assert "Leon Sorokin" in static("THIRD_PARTY_LICENSES")


def test_bad_calls_are_told_what_to_do(healthy, tmp_path):
    with pytest.raises(BadInput, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(BadInput, match=r"report\.html"):
        write_report(healthy, tmp_path)


def test_a_report_is_replaced_whole_and_folders_are_made(healthy, tmp_path):
    target = tmp_path / "new" / "report.html"
    assert write_report(healthy, target) == target
    target.write_text("old")
    write_report([healthy], str(target))
    assert target.read_text().startswith("<!doctype html>")
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_runs_are_called_by_what_tells_them_apart(only_loss_synthetic, tmp_path):
    views = [only_loss_synthetic.write(tmp_path / place) for place in ("a/run", "b/run", "other")]
    assert names(views) == ["a/run", "b/run", "other"]
    assert names([views[2], views[2]]) == ["other", "other"]


def test_summary_of_a_healthy_run(healthy):
    assert [f.label for f in summary(healthy)] == [
        "final loss",
        "best validation loss",
        "steps",
        "training time",
        "overhead of measuring",
        "problems with the log",
    ]
    best = healthy["val_loss"].values.min()
    step = healthy["val_loss"].steps[healthy["val_loss"].values.argmin()]
    assert (fact(healthy, "best validation loss").value, fact(healthy, "best validation loss").detail) == (
        f"{best:.4g}",
        f"step {step:,}",
    )
    assert fact(healthy, "final loss").value == f"{healthy['loss.smoothed'].values[-1]:.4g}"
    assert not any(f.alarm for f in summary(healthy))


def test_summary_of_a_diverged_run_alarms(diverged):
    final = fact(diverged, "final loss")
    assert (final.value, final.detail, final.alarm) == ("NaN", "not finite since step 1,401", True)


def test_training_time_counts_the_steps_between_measurements(make):
    view = make(**{"system.step_seconds": ([1, 2, 3, 13], [2.0, 2.0, 2.0, 1.0])})
    assert fact(view, "training time").value == "16 s"


def test_overhead_beyond_its_budget_alarms(make):
    view = make([{"kind": "run_end", "step": 1, "overhead": 0.05, "budget": 0.02}], loss=([1], [1.0]))
    assert fact(view, "overhead of measuring").alarm


def test_what_a_run_that_acts_has_tried_is_no_excess_of_measuring(make):
    calibration = {"kind": "calibration", "step": 1, "navigator": {"mode": "act"}}
    end = {"kind": "run_end", "step": 1, "overhead": 0.15, "budget": 0.02}
    found = fact(make([calibration, end], loss=([1], [1.0])), "overhead of measuring and acting")
    assert (found.value, found.detail, found.alarm) == ("15.0%", "looks, checks and trials", False)


def test_damage_to_the_log_is_counted_and_listed(only_loss_synthetic, tmp_path):
    folder = tmp_path / "damaged"
    only_loss_synthetic.write(folder)
    (segment,) = (folder / "data").glob("*.arrows")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    with pytest.warns(DynaxxWarning, match="cannot be read"):
        view = open_run(folder)
    problems = fact(view, "problems with the log")
    assert problems.alarm
    assert int(problems.value) >= 1
    (table,) = [p for p in figures.entries()["about"].panels(view) if p.title == "Problems"]
    assert segment.name in table.rows[0][0]


def test_an_empty_run_has_a_report(only_loss_synthetic, tmp_path):
    only_loss_synthetic.columns.clear()
    page = write_report(only_loss_synthetic.write(tmp_path / "empty"), tmp_path / "report.html").read_text()
    assert "neither loss nor val_loss was logged" in page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59.9, "59.9 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
