"""Fleets on processes of this machine: closed forms, reuse, kills, errors, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dynaxx.errors import BadInput, DynaxxError
from dynaxx.survey.engines import Ended, Engine, Processes
from dynaxx.survey.engines._engine import work
from dynaxx.survey.fleet import FleetProgress, member_steps, run_fleet
from dynaxx.survey.member import Member, product

TASKS = Path(__file__).with_name("fleet_tasks.py")
ONE = Processes(1)


def bowl_loss(rate: float, steps: int) -> float:
    return 0.5 * sum(h * (1 - rate * h) ** (2 * steps) for h in (1.0, 2.0, 4.0))


class Here(Engine):
    """Does the work in this process: for what does not need another one."""

    def run(self, jobs):
        for job in jobs:
            yield work(job)


def test_results_are_those_of_gradient_descent(tmp_path):
    members = product(f"{TASKS}:Bowl", steps=20, rates=(0.5, 1.0, 6.0), evaluations=4)
    fleet = run_fleet(members, tmp_path, engine=Here())
    assert [r.member for r in fleet.results] == [m.found() for m in members]
    for result in fleet.results:
        assert result.initial == pytest.approx(3.5)
        assert result.final == pytest.approx(bowl_loss(0.1 * result.member.rate, 20), rel=1e-4)
        assert result.first_loss == pytest.approx(3.5)
        # The last tenth of 20 steps: the losses before the 19th and the 20th update.
        tail = [bowl_loss(0.1 * result.member.rate, n) for n in (18, 19)]
        assert result.loss == pytest.approx(sum(tail) / 2, rel=1e-4)
    assert [r.diverged for r in fleet.results] == [False, False, True]
    # 20 steps; five evaluations on ten batches of the size of a training batch.
    assert (fleet.results[0].cost.forwards, fleet.results[0].cost.backwards) == (20 + 5 * 10, 20)
    assert fleet.cost.backwards == 60


def test_what_is_done_is_not_done_again(tmp_path):
    members = product(f"{TASKS}:Bowl", steps=10, seeds=(0, 1))
    first = run_fleet(members, tmp_path, engine=Here())
    seen: list[FleetProgress] = []

    class Never(Engine):
        def run(self, jobs):
            raise AssertionError("nothing is left to do")
            yield

    again = run_fleet([*members, members[0]], tmp_path, engine=Never(), progress=seen.append)
    assert again.reused == 3
    assert again.results[:2] == first.results
    assert again.cost.backwards == 0
    assert (seen[-1].finished, seen[-1].members, seen[-1].step) == (2, 2, 20)
    (tmp_path / Path(first.results[0].folder).name / "result.json").write_text("{torn")
    assert run_fleet(members, tmp_path, engine=Here()).reused == 1


def test_an_error_is_retried_and_reported_and_fails_nobody_else(tmp_path):
    members = [Member(task=f"{TASKS}:Raises", steps=5), Member(task=f"{TASKS}:Bowl", steps=5)]
    fleet = run_fleet(members, tmp_path, engine=Here(), retries=1)
    assert [r.status for r in fleet.results] == ["failed", "finished"]
    assert "RuntimeError: the user's own error" in fleet.results[0].why
    assert fleet.retried == 1
    assert "failed: seed 0: RuntimeError" in str(fleet)


def test_bad_input_is_not_retried(tmp_path):
    wrong = Member(task=f"{TASKS}:Bowl", steps=5, optimizer="adam:lr=-1.0")
    fleet = run_fleet([wrong], tmp_path, engine=Here())
    assert fleet.retried == 0
    assert "learning rate" in fleet.failed[0].why


def test_silence_of_an_engine_is_a_failure(tmp_path):
    class Silent(Engine):
        def run(self, jobs):
            yield None

    fleet = run_fleet([Member(task=f"{TASKS}:Bowl", steps=5)], tmp_path, engine=Silent())
    assert not fleet.finished
    assert fleet.failed[0].why == "the engine said nothing of it"


def test_no_member_and_bad_numbers(tmp_path):
    with pytest.raises(BadInput, match="at least one member"):
        run_fleet([], tmp_path)
    with pytest.raises(BadInput, match="retries"):
        run_fleet([Member(task="digits", steps=1)], tmp_path, retries=-1)
    with pytest.raises(BadInput, match="workers"):
        Processes(0)


def test_lengths_keep_to_the_passes():
    assert member_steps(10_000, members=6, passes=3000) == 500
    assert member_steps(1000, members=6, passes=3000) == 100
    assert member_steps(5, members=6, passes=3000) == 1


def test_a_killed_process_costs_one_attempt(tmp_path, monkeypatch):
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv("DYNAXX_TEST_MARK", str(tmp_path / "marks" / "killed"))
    members = [Member(task=f"{TASKS}:Dies", steps=8), *product(f"{TASKS}:Bowl", steps=4, seeds=(0, 1))]
    said: list[str] = []
    fleet = run_fleet(members, tmp_path / "fleet", engine=ONE, progress=lambda p: said.extend(p.said))
    assert len(fleet.finished) == 3
    assert fleet.retried == 1
    assert said == ["seed 0: lost: its process was killed by SIGKILL"]
    assert fleet.results[0].attempts == 2


@pytest.mark.slow
def test_one_that_always_dies_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNAXX_TEST_MARK", str(tmp_path / "nowhere" / "killed"))
    members = [Member(task=f"{TASKS}:Dies", steps=8), *product(f"{TASKS}:Bowl", steps=4, seeds=range(5))]
    fleet = run_fleet(members, tmp_path / "fleet", engine=Processes(2))
    assert len(fleet.finished) == 5
    assert fleet.failed[0].why == "its process was killed by SIGKILL"
    assert fleet.retried == 2


SCRIPT = """
import sys
from dynaxx.survey.engines import Processes
from dynaxx.survey.fleet import run_fleet
from dynaxx.survey.member import product
{guard}
    run_fleet(product({task!r}, steps=200), {folder!r}, engine=Processes(1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ended_fleet_leaves_checkpoints_and_no_process(tmp_path, number):
    """Also where the fleet itself is killed: its workers save and end."""
    script = tmp_path / "script.py"
    guard = "if __name__ == '__main__':"
    script.write_text(SCRIPT.format(guard=guard, task=f"{TASKS}:Slow", folder=str(tmp_path / "fleet")))
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    worker = _wait_for_step(tmp_path / "fleet", 20)
    parent.send_signal(number)
    assert parent.wait(60) != 0
    until = time.monotonic() + 60
    while _alive(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _alive(worker)
    saved = [int(p.name.partition("-")[0]) for p in (tmp_path / "fleet").glob("*/checkpoints/0*")]
    assert saved
    assert 20 <= max(saved) < 200
    member = product(f"{TASKS}:Slow", steps=200)
    fleet = run_fleet(member, tmp_path / "fleet", engine=Here())
    assert fleet.results[0].final == pytest.approx(bowl_loss(0.1, 200), abs=1e-12)
    assert fleet.results[0].attempts == 2


@pytest.mark.slow
def test_a_script_without_its_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard="if True:", task=f"{TASKS}:Bowl", folder=str(tmp_path / "fleet")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr


def test_interrupted_members_go_on(tmp_path):
    """What is preempted says so, and the next round resumes it."""
    member = Member(task=f"{TASKS}:Bowl", steps=10)
    states = iter(["interrupted", "done"])

    class Preempts(Engine):
        def run(self, jobs):
            for job in jobs:
                state = next(states)
                yield Ended(job=job, status="interrupted", why="preempted") if state != "done" else work(job)

    fleet = run_fleet([member], tmp_path, engine=Preempts())
    assert len(fleet.finished) == 1
    assert fleet.retried == 1


def test_order_seeds_make_other_members(tmp_path):
    base = Member(task=f"{TASKS}:Noisy", steps=10)
    fleet = run_fleet([base, replace(base, order_seed=1), replace(base, order_seed=0)], tmp_path, engine=Here())
    losses = [result.final for result in fleet.results]
    assert losses[0] != losses[1]
    assert losses[0] == losses[2]


def _wait_for_step(fleet: Path, step: int) -> int:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        for record in fleet.glob("*/attempts/1.json"):
            try:
                if int((record.parents[1] / "position").read_text()) >= step:
                    return json.loads(record.read_text())["pid"]
            except (OSError, ValueError):
                pass
        time.sleep(0.05)
    raise DynaxxError("the member did not get there")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
