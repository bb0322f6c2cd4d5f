"""Short names of runs: told apart by their folders, or by what they were trained with."""

from collections.abc import Sequence
from pathlib import Path

from dynaxx.landscape._run_names import run_names
from dynaxx.survey.engines import Engine, Job
from dynaxx.survey.engines._engine import work
from dynaxx.survey.fleet import run_fleet
from dynaxx.survey.member import product

TASKS = Path(__file__).parents[1] / "survey" / "fleet_tasks.py"


class Here(Engine):
    """Trains in this process."""

    def run(self, jobs: Sequence[Job]):
        yield from map(work, jobs)


def test_folders_are_named_by_as_much_of_their_path_as_tells_them_apart():
    assert run_names([Path("a/first"), Path("b/second")]) == ["first", "second"]
    assert run_names([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert run_names([Path("runs/only")]) == ["only"]
    assert run_names([]) == []


def test_trainings_of_a_fleet_are_named_by_what_differs(tmp_path: Path):
    members = product(f"{TASKS}:Noisy", steps=4, seeds=(0, 1), rates=(0.5, 1.0))
    folders = [Path(result.folder) for result in run_fleet(members, tmp_path, engine=Here()).results]
    assert run_names(folders) == ["rate 0.5 · seed 0", "seed 0", "rate 0.5 · seed 1", "seed 1"]
    assert run_names(folders[:1]) == ["rate 0.5 · seed 0"]  # one alone differs from nothing
