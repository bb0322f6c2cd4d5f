import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.branch import branch
from dynaxx.checkpoints.health import mark
from dynaxx.checkpoints.lineage import as_graph, as_tree, lineage
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.pruning import pin
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.figures.lineage import Lineage
from dynaxx.runlog import LogWriter, open_run
from dynaxx.runlog.manifest import write_manifest


def save(store, *steps):
    return [store.save(step, {"model": {"state": {"w": torch.ones(2, 2)}}}) for step in steps]


@pytest.fixture
def runs(tmp_path):
    """First went back once; second is a branch of its line, third of second's, fourth of what first left behind."""
    root = tmp_path / "runs"
    write_manifest(root / "first", {"steps": 100})
    store = CheckpointStore(root / "first" / "checkpoints")
    infos = save(store, 10, 20, 30, 40)
    store.continue_from(infos[1])
    save(store, 25, 35)
    branch(root / "first", root / "second", at=25)
    save(CheckpointStore(root / "second" / "checkpoints"), 50)
    branch(root / "second", root / "third", at=50)
    branch(root / "first", root / "fourth", at=40)
    return root


def test_the_tree(runs):
    assert as_tree(lineage(runs)) == [
        "first · 6 checkpoints",
        "├─ 10 … 20 (2)",
        "│  └─ left behind",
        "│     └─ 30 … 40 (2)",
        "│        └─ fourth · exact from step 40 · 1 checkpoint",
        "│           └─ 40",
        "├─ 25",
        "│  └─ second · exact from step 25 · 2 checkpoints",
        "│     └─ 25 … 50 (2)",
        "│        └─ third · exact from step 50 · 1 checkpoint",
        "│           └─ 50",
        "└─ 35",
    ]


def test_what_is_said_of_checkpoints_shows(runs):
    place = LocalPlace(runs / "first" / "checkpoints")
    ten, twenty = (place.find(step) for step in (10, 20))
    mark(place, ten, "healthy", "")
    pin(place, twenty, "why not")
    archive(place, ten)
    place.remove(ten)
    tree = as_tree(lineage(runs / "first"))
    assert tree[0] == "first · 6 checkpoints"
    assert tree[1] == "├─ 10 … 20 (2), 1 healthy, 1 archived, pinned: 20"


def test_a_branch_whose_origin_is_elsewhere_is_a_root(runs):
    assert as_tree(lineage(runs / "third"))[0] == "third · exact from step 50 · 1 checkpoint"


def test_the_figure_rises_where_lines_part(runs):
    panel = as_graph(lineage(runs))
    drawn = {line.label: [*zip(line.x.tolist(), line.y.tolist(), strict=True)] for line in panel.lines}
    assert drawn == {
        "first": [(10, 0), (20, 0), (25, 0), (35, 0)],
        "first, left behind": [(20, 0), (30, 1), (40, 1)],
        "fourth": [(40, 1), (40, 2)],
        "second": [(25, 0), (25, 3), (50, 3)],
        "third": [(50, 3), (50, 4)],
    }


def test_no_run_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="holds no run"):
        lineage(tmp_path)


def written(folder, saves, **manifest):
    writer = LogWriter(folder, manifest=manifest)
    for id, step, origin in saves:
        writer.event("checkpoint", step=step, id=id, **({} if origin is None else {"origin": origin}))
    writer.close()
    return open_run(folder)


def test_the_report_shows_pruned_saves_too(tmp_path):
    back = {"checkpoint": "0000000020-000002-aaaaaaaa", "number": 4}
    saves = [(f"{n:06d}-aaaaaaaa", step, None) for n, step in ((1, 10), (2, 20), (3, 30))]
    view = written(tmp_path / "run", [*saves, ("000004-aaaaaaaa", 25, back)])
    (panel,) = Lineage().panels(view)
    assert [line.x.tolist() for line in panel.lines] == [[10, 20, 25], [20, 30]]
    assert panel.lines[1].label == "this run, left behind"


def test_a_straight_run_has_no_such_figure(tmp_path):
    view = written(tmp_path / "run", [("000001-aaaaaaaa", 10, None), ("000002-aaaaaaaa", 20, None)])
    with pytest.raises(NotApplicable, match="never went back"):
        Lineage().panels(view)


def test_a_branch_says_where_it_is_from(tmp_path):
    view = written(
        tmp_path / "run", [("000003-aaaaaaaa", 30, None)], branch={"origin": "/runs/a", "step": 20, "level": "exact"}
    )
    (panel,) = Lineage().panels(view)
    assert "a branch of /runs/a at step 20 (exact)" in panel.note
