"""The story: alarms shaded, acts marked, what was left behind drawn, and one line of account for each."""

from pathlib import Path

import numpy as np
import pytest

from dynaxx.core.findings import Cause, Evidence, Finding
from dynaxx.core.navigation import Decision, Outcome, Promise, Proposal
from dynaxx.core.panels import Lines, Table
from dynaxx.core.records import Action, Column, Receipt
from dynaxx.errors import NotApplicable
from dynaxx.figures._data import of_panels
from dynaxx.figures.story import Story
from dynaxx.runlog import LogWriter, open_run

LOSS = Column(name="loss", dtype="float64")
FOUND = Finding(
    code="D6",
    name="loss_spike",
    title="loss ×9 at step 40",
    severity="warning",
    spans=((40, 45),),
    evidence=(Evidence(text="z = 12 against 6"),),
    causes=(Cause(name="corrupted_batch", confidence=0.8),),
)
ACTION = Action(name="learning_rate", arguments={"factor": 0.5}, steps=50, reason="the loss has left its range")
PROPOSAL = Proposal(
    controller="recover", action=ACTION, finding=FOUND, cause="corrupted_batch",
    promise=Promise(column="loss", below=1.5, steps=20),
)  # fmt: skip


def rows(log: LogWriter, first: int, values: np.ndarray) -> None:
    log.rows("train", np.arange(first, first + len(values)), [(LOSS, values, None)])


def story(folder: Path):
    log = LogWriter(folder, manifest={})
    rows(log, 1, np.linspace(2.0, 1.0, 45))
    log.event("finding", step=45, state="opened", finding=FOUND)
    decision = Decision(proposal=PROPOSAL, status="taken", why="within budget", step=45).as_dict()
    log.event("decision", **decision)
    log.event("receipt", step=45, receipt=Receipt(action=ACTION, step=45, status="begun", detail="×0.5"))
    log.close()
    log = LogWriter(folder, manifest={}, start_step=30, resume=True)
    rows(log, 31, np.linspace(1.2, 0.9, 40))
    then = [{"name": "learning_rate", "arguments": {"factor": 0.5}, "steps": None, "reason": ""}]
    log.event("rolled_back", step=30, came_from=45, batches_passed=15, then=then)
    outcome = Outcome(proposal=PROPOSAL, step=45, judged=65, kept=True, measured=0.95, undone=False).as_dict()
    log.event("outcome", acted=outcome.pop("step"), step=65, **outcome)
    log.event("finding", step=65, state="closed", finding=FOUND)
    log.close()
    return open_run(folder)


def test_the_picture_shades_alarms_marks_acts_and_shows_what_was_left_behind(tmp_path: Path):
    picture, _ = Story().panels(story(tmp_path / "run"))
    assert isinstance(picture, Lines)
    assert picture.spans == {"loss spike": (40.0, 45.0)}
    assert picture.marks == {"learning rate × 0.5": 45.0}
    left = next(line for line in picture.lines if line.label.startswith("left behind"))
    np.testing.assert_array_equal(left.x, np.arange(31, 46))
    np.testing.assert_allclose(left.y, np.linspace(2.0, 1.0, 45)[30:])
    assert of_panels("story", "Story", [picture]).panels[0]["spans"] == {"loss spike": [40.0, 45.0]}


def test_the_account_tells_finding_act_and_outcome(tmp_path: Path):
    _, table = Story().panels(story(tmp_path / "run"))
    assert isinstance(table, Table)
    told = [row[1] for row in table.rows]
    assert told == ["found", "done", "went back", "it helped", "over"]
    assert table.rows[0][3] == "corrupted batch (80%); z = 12 against 6"
    assert table.rows[2][2:] == (
        "from step 45 to the checkpoint of step 30",
        "15 batches passed over; then learning rate factor 0.5",
    )
    assert table.rows[3][3] == "loss 0.95, promised below 1.5"
    assert table.rows[4][3] == "it was seen in steps 40 to 45"


def test_a_run_without_findings_has_no_story(tmp_path: Path):
    log = LogWriter(tmp_path / "run", manifest={})
    rows(log, 1, np.ones(3))
    log.event("receipt", step=1, receipt=Receipt(action=ACTION, step=1, status="begun"))
    log.close()
    with pytest.raises(NotApplicable, match="navigate"):
        Story().panels(open_run(tmp_path / "run"))


def test_it_is_drawn(tmp_path: Path):
    from dynaxx.figures import draw

    draw(story(tmp_path / "run"), "story").savefig(tmp_path / "story.png", dpi=100)
    assert (tmp_path / "story.png").stat().st_size > 10_000


def test_a_check_names_what_it_found_and_says_why_it_could_not_speak(tmp_path: Path):
    log = LogWriter(tmp_path / "run", manifest={})
    rows(log, 1, np.ones(9))
    held = {"frozen": [f"blocks.1.{name}" for name in "abcd"], "outside": [], "foreign": 0, "ratio": None}
    log.event("check", step=3, name="optimizer_holds", values=held)
    log.event("check", step=5, name="optimizer_holds", values={"frozen": []})
    log.event("check", step=7, name="replay_batch", not_applicable="the run has no loss")
    log.close()
    _, account = Story().panels(open_run(tmp_path / "run"))
    assert isinstance(account, Table)
    told = [row[-1] for row in account.rows]
    assert "frozen (blocks.1.a blocks.1.b blocks.1.c …), foreign 0" in told
    assert "nothing" in told
    assert "it could not speak: the run has no loss" in told
