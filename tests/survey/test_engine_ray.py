"""The Ray engine on a local cluster: twelve members, one worker killed half way, twelve results."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from dynaxx.errors import BadInput
from dynaxx.survey.engines import Ray
from dynaxx.survey.fleet import run_fleet
from dynaxx.survey.member import product

TASKS = Path(__file__).with_name("fleet_tasks.py")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours


def kill_one(fleet: Path, killed: list[int], ended: threading.Event) -> None:
    """Kill the process of a member that is under way, as soon as one has checkpointed nothing but begun."""
    while not ended.is_set():
        for record in fleet.glob("*/attempts/1.json"):
            folder = record.parent.parent
            try:
                pid, step = json.loads(record.read_text())["pid"], int((folder / "position").read_text())
            except (OSError, ValueError, KeyError):
                continue
            if 0 < step < 60 and not (folder / "result.json").exists():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
        time.sleep(0.05)


def test_twelve_results_though_a_worker_is_killed(tmp_path):
    members = product(f"{TASKS}:Slow", steps=60, seeds=(0, 1, 2), rates=(0.5, 1.0, 2.0, 4.0))
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_one, args=(tmp_path / "fleet", killed, ended))
    killer.start()
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    engine = Ray(
        "local", runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}, **options
    )
    try:
        fleet = run_fleet(members, tmp_path / "fleet", engine=engine)
    finally:
        ended.set()
    killer.join()
    assert killed, "no worker was caught at work"
    assert len(fleet.finished) == 12, str(fleet)
    assert fleet.retried >= 1
    assert max(result.attempts for result in fleet.results) == 2
    assert not ray.is_initialized()
    again = run_fleet(members, tmp_path / "fleet", engine=engine)
    assert again.reused == 12
    assert again.cost.backwards == 0


def test_no_cluster_at_the_address(tmp_path):
    engine = Ray("127.0.0.1:1")
    with pytest.raises(BadInput, match="no cluster answers"):
        run_fleet(product(f"{TASKS}:Bowl", steps=5), tmp_path, engine=engine)
