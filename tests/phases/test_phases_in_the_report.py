"""The figure of phases, from a run that has them and from one that has not."""

import pytest
import torch
import torch.nn.functional as F

import dynaxx
from dynaxx.errors import NotApplicable
from dynaxx.figures.phases import Phases
from dynaxx.phases import Phase, Phased


def run_of(net, folder, phased):
    model = net()
    plan = [Phase(name="a", until=0.5, optimizer="adamw"), Phase(name="b", optimizer="soap")]
    optimizer = Phased(model, plan, steps=20) if phased else torch.optim.SGD(model.parameters(), lr=0.1)
    with dynaxx.watch(model, optimizer, folder, steps=20, signals=["phase"], quiet=True) as run:
        for n in range(20):
            loss = F.cross_entropy(model(torch.full((4, 6), 0.1 * n)), torch.arange(4) % 3)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log(loss=loss)
    return dynaxx.open_run(folder)


def test_the_loss_is_drawn_by_phase(net, tmp_path):
    view = run_of(net, tmp_path / "run", phased=True)
    (panel,) = Phases().panels(view)
    assert [(line.label, line.x[0], line.x[-1]) for line in panel.lines] == [("phase 0", 1, 10), ("phase 1", 11, 20)]
    assert panel.marks == {"phase 1 from step 11": 11.0}
    assert torch.tensor([*panel.lines[0].y, *panel.lines[1].y]).tolist() == view["loss"].values.tolist()


def test_a_run_of_one_optimizer_has_no_phases(net, tmp_path):
    with pytest.raises(NotApplicable, match=r"no dynaxx\.phases\.Phased"):
        Phases().panels(run_of(net, tmp_path / "run", phased=False))
