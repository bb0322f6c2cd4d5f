"""A folder that takes nothing is refused in one line; one that goes away costs one warning, not the training."""

import shutil

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.cli import BAD_INPUT, run
from dynaxx.errors import BadInput, DynaxxWarning


def test_watch_names_the_folder_that_takes_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput, match=r"watch\(dir='.*file/run'\): nothing can be written there .*Give another"):
        dynaxx.watch(model, optimizer, tmp_path / "file" / "run", quiet=True)


def test_the_command_calls_it_bad_input(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["train", "digits", "--steps", "1", "--quiet", "--out", str(tmp_path / "file" / "run")]) == BAD_INPUT
    assert "nothing can be written there" in capsys.readouterr().err


def test_a_folder_that_goes_away_is_said_once_and_training_goes_on(tmp_path):
    folder = tmp_path / "run"
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = dynaxx.watch(model, optimizer, folder, quiet=True, navigate="advise")

    def steps(number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().mean()
            loss.backward()
            optimizer.step()
            watched.log(loss=loss)

    def rest() -> None:
        steps(40)  # two looks of the navigator fall into them, and the last one into the end
        watched.close()

    steps(5)
    watched.flush()
    shutil.rmtree(folder)
    folder.write_text("a file in its place")
    with pytest.warns(DynaxxWarning) as said:
        rest()
    assert watched.step == 45
    assert len(said) == 1
    assert "Training goes on" in str(said[0].message)
