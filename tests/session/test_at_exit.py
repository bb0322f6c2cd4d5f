"""Runs that nobody closes are complete when the interpreter ends."""

import subprocess
import sys
from pathlib import Path

import dynaxx

LOOP = """
import sys, torch, dynaxx
torch.set_num_threads(1)
runs = []
for name in ("first", "second", "third"):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runs.append(dynaxx.watch(model, optimizer, f"{sys.argv[1]}/{name}", navigate="off", quiet=True))
    for _ in range(5):
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        runs[-1].log(loss=loss)
runs[0].close()
"""


def test_closing_one_run_leaves_the_others_to_be_closed_at_exit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    for name in ("first", "second", "third"):
        view = dynaxx.open_run(tmp_path / name)
        assert [attempt.status for attempt in view.attempts] == ["finished"], name
        assert len(view["loss"]) == 5, name
