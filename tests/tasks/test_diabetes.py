import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_absolute_error, r2_score

from dynaxx.core.loop import epoch_seed, evaluate, train_steps
from dynaxx.tasks.diabetes import Diabetes


def everything(split):
    return tuple(torch.cat(parts) for parts in zip(*Diabetes().batches(split, seed=1), strict=True))


def test_columns_are_standardised_by_the_training_split():
    inputs, targets = everything("train")
    for values in (inputs, targets[:, None]):
        assert values.mean(dim=0).abs().max() < 1e-6
        torch.testing.assert_close(values.std(dim=0, correction=0), torch.ones(values.shape[1]))
    held_out, held_out_targets = everything("validation")
    assert held_out.mean(dim=0).abs().max() > 0.01
    assert (len(targets), len(held_out_targets)) == (354, 88)


def restored(values, raw):
    """Undo the standardisation of each column, known up to an affine map, by the column's extremes."""
    low, high = values.min(axis=0), values.max(axis=0)
    return (values - low) / (high - low) * (raw.max(axis=0) - raw.min(axis=0)) + raw.min(axis=0)


def test_each_patient_is_in_one_split():
    raw, target = load_diabetes(return_X_y=True, scaled=False)
    known = np.column_stack([raw, target])
    splits = [torch.column_stack(everything(split)).double() for split in ("train", "validation")]
    found = restored(torch.cat(splits).numpy(), known)
    # Each row found is nearest to another one of the rows that there are.
    distances = np.abs(found[:, None] - known[None]).max(axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(442))
    assert distances.min(axis=1).max() < 1e-3


def test_metrics_are_those_of_the_whole_split_in_the_unit_of_the_target():
    torch.manual_seed(0)
    task = Diabetes()
    model = task.model()
    values = evaluate(task, model, task.batches("validation", 0))
    inputs, targets = everything("validation")
    predicted = model(inputs).detach()
    assert values["r2"] == pytest.approx(r2_score(targets, predicted), abs=1e-5)
    _, raw = load_diabetes(return_X_y=True, scaled=False)
    low, high = torch.cat([everything("train")[1], targets]).aminmax()
    unit = (raw.max() - raw.min()) / float(high - low)
    assert values["absolute_error"] == pytest.approx(unit * mean_absolute_error(targets, predicted), rel=1e-5)


def test_it_overfits_on_cue():
    torch.manual_seed(0)
    task = Diabetes()
    model = task.model()
    optimizer = task.optimizer(model)
    train, validation = [], []
    for epoch in range(task.steps // 12):
        list(train_steps(task, model, optimizer, task.batches("train", epoch_seed(0, epoch))))
        train.append(evaluate(task, model, task.batches("train", 0))["loss"])
        validation.append(evaluate(task, model, task.batches("validation", 0))["loss"])
    best = min(range(len(validation)), key=validation.__getitem__)
    assert validation[best] < 0.6
    assert best < len(validation) / 4
    assert validation[-1] > 1.3 * validation[best]
    assert train[-1] < 0.5 * train[best]
