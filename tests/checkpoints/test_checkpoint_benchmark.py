"""The benchmark runs, and what it counts of Dynaxx is right at a glance too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "checkpoint.py"


@pytest.mark.slow
def test_quick_tables(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["kills", "damage", "times", "integrity", "steps"]
    for name in ("Dynaxx", "Dynaxx asynchronous"):
        assert found["kills"][name].pop("saves acknowledged") > 0
        assert found["kills"][name] == {"right": 8}
    assert found["damage"]["Dynaxx, flipped bit"] == {"refused": 20}
    assert found["damage"]["Dynaxx, truncation"] == {"refused": 10}
    assert all(row["low"] <= row["median"] <= row["high"] for row in (found["times"] | found["integrity"]).values())
