import torch
from torch import nn

from dynaxx.runlog import open_run
from dynaxx.session import watch
from dynaxx.session.described import dropout, modules


def test_modules_are_counted_by_class_without_containers():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2), nn.ReLU())
    assert modules(model) == {"Linear": 2, "ReLU": 2}


def test_what_drops_is_named_with_its_share():
    model = nn.ModuleDict(
        {
            "none": nn.Dropout(0.0),
            "flat": nn.Dropout2d(0.25),
            "between": nn.LSTM(3, 3, num_layers=2, dropout=0.5),
            "weights": nn.MultiheadAttention(4, 2, dropout=0.1),
        }
    )
    assert dropout(model) == {"flat": 0.25, "between": 0.5, "weights": 0.1}
    assert dropout(nn.Linear(2, 2)) == {}


def test_a_run_says_so_in_its_manifest(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True).close()
    assert open_run(tmp_path / "run").manifest["model"]["dropout"] == {"1": 0.5}
