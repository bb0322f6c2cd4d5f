"""The SLURM engine on submitit's local executor, which stands for the cluster."""

from pathlib import Path

import pytest

from dynaxx.survey.engines import Slurm
from dynaxx.survey.fleet import run_fleet
from dynaxx.survey.member import Member, product

TASKS = Path(__file__).with_name("fleet_tasks.py")
pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
pytestmark = pytest.mark.slow


def test_members_are_packed_and_errors_stay_with_their_member(tmp_path):
    members = [*product(f"{TASKS}:Bowl", steps=5, seeds=(0, 1, 2)), Member(task=f"{TASKS}:Raises", steps=5)]
    engine = Slurm(tmp_path / "logs", jobs=2, cluster="local", timeout_min=5)
    fleet = run_fleet(members, tmp_path / "fleet", engine=engine, retries=0)
    assert len(fleet.finished) == 3
    assert "the user's own error" in fleet.failed[0].why


def test_a_job_that_is_killed_is_lost_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv("DYNAXX_TEST_MARK", str(tmp_path / "marks" / "killed"))
    members = [Member(task=f"{TASKS}:Dies", steps=5), Member(task=f"{TASKS}:Bowl", steps=5)]
    engine = Slurm(tmp_path / "logs", jobs=1, cluster="local", timeout_min=5)
    fleet = run_fleet(members, tmp_path / "fleet", engine=engine)
    assert len(fleet.finished) == 2
    assert fleet.retried >= 1
