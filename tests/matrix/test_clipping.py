"""Clipping by torch's functions, however imported: norms are those of before the clip, the coefficient is torch's."""

import numpy as np
import pytest
import torch
from torch.nn import functional, utils
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

QUICK = {
    "test_every_import_style": ["by_name", "by_two_functions", "by_largest_entry"],
    "test_clipping_by_value_is_measured_before_too": ["1"],
}
THRESHOLD = 0.3


def by_attribute(parameters, threshold):
    return torch.nn.utils.clip_grad_norm_(parameters, threshold)


def by_module(parameters, threshold):
    return clip_grad.clip_grad_norm_(parameters, max_norm=threshold)


def by_name(parameters, threshold):
    return clip_grad_norm_(parameters, threshold, foreach=False)


def by_two_functions(parameters, threshold):
    parameters = list(parameters)
    total = get_total_norm([p.grad for p in parameters])
    clip_grads_with_norm_(parameters, threshold, total)
    return total


def by_two_functions_with_keywords(parameters, threshold):
    parameters = list(parameters)
    total = utils.get_total_norm([p.grad for p in parameters])
    utils.clip_grads_with_norm_(parameters=parameters, max_norm=threshold, total_norm=total)
    return total


def by_largest_entry(parameters, threshold):
    return clip_grad_norm_(parameters, threshold / 10, norm_type="inf")


STYLES = [by_attribute, by_module, by_name, by_two_functions, by_two_functions_with_keywords, by_largest_entry]


@pytest.mark.parametrize("clip", STYLES, ids=lambda f: f.__name__)
def test_every_import_style(both, agrees, small, data, clip):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        watch(model, optimizer)
        for x, y in data(4):
            functional.cross_entropy(model(x), y).backward()
            book.backward_done(model)
            before = model[0].weight.grad.norm()
            clip(model.parameters(), THRESHOLD)
            book.note("coefficient", model[0].weight.grad.norm() / before)
            book.before_step(model)
            optimizer.step()
            book.after_step(model)
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    np.testing.assert_allclose(view["clip_coefficient"].values, book.values["coefficient"], rtol=1e-5)
    assert view["clip_coefficient"].values.max() < 1
    assert view.events("self_test")[0]["seen"] == "pre-clip, unscaled"


@pytest.mark.parametrize("clip", [torch.nn.utils.clip_grad_value_, clip_grad_value_])
def test_clipping_by_value_is_measured_before_too(both, agrees, small, data, clip):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        for x, y in data(3):
            functional.cross_entropy(model(x), y).backward()
            book.backward_done(model)
            clip(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert "clip_coefficient" not in view.columns  # no single factor describes it
    assert view.events("self_test")[0]["seen"] == "pre-clip, unscaled"


def test_groups_clipped_one_by_one_and_one_tensor_alone(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[4].parameters()]}]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        watch(model, optimizer)
        for x, y in data(3):
            functional.cross_entropy(model(x), y).backward()
            book.backward_done(model)
            totals = [clip_grad_norm_(group["params"], 0.1) for group in optimizer.param_groups]
            clip_grad_norm_(model[4].weight, 0.01)
            book.note("coefficient", min(1.0, 0.1 / (float(totals[0]) + 1e-6)))
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    np.testing.assert_allclose(view["clip_coefficient"].values, book.values["coefficient"], rtol=1e-6)


def test_clipping_every_micro_batch_is_measured_when_gradients_are_complete(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(6)):
            functional.cross_entropy(model(x), y).backward()
            if i % 2:
                book.backward_done(model)  # before the last clip of the step: what the step's gradient is
            clip_grad_norm_(model.parameters(), THRESHOLD)
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
        return model, optimizer

    agrees(*both(loop))


def test_a_clip_whose_step_never_comes_is_forgotten(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(6)):
            loss = functional.cross_entropy(model(x), y)
            (loss * torch.inf if i in (1, 4) else loss).backward()
            kept = Norms(book, model)
            if not torch.isfinite(clip_grad_norm_(model.parameters(), THRESHOLD)):
                kept.forget()
                optimizer.zero_grad()
                continue
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert len(book.gradients) == 4
    assert "grad_nonfinite" not in view.columns


class Norms:
    """A row of the book that can be taken back."""

    def __init__(self, book, model):
        self.book = book
        book.backward_done(model)

    def forget(self):
        self.book.gradients.pop()


def test_clipping_someone_elses_parameters_is_not_our_clip(both, agrees, small, data):
    def loop(watch, book):
        model, other = small(), torch.nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        for x, y in data(2):
            functional.cross_entropy(model(x) + other(x), y).backward()
            clip_grad_norm_(other.parameters(), 0.1)
            book.backward_done(model)
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer, other

    view, book = both(loop)
    agrees(view, book)
    assert "clip_coefficient" not in view.columns
    assert view.events("self_test")[0]["seen"] == "unclipped, unscaled"


def test_clip_results_are_torchs_own(small, data, tmp_path):
    """The functions return and do what they did before, in and after a watch, generators included."""
    import dynaxx

    def clipped(model):
        x, y = data(1)[0]
        model.zero_grad()
        model.eval()
        functional.cross_entropy(model(x), y).backward()
        total = clip_grad_norm_((p for p in model.parameters()), 0.1)
        return [total.clone(), *(p.grad.clone() for p in model.parameters())]

    model = small()
    before = clipped(model)
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True)
    during = clipped(model)
    run.close()
    after = clipped(model)
    for a, b, c in zip(before, during, after, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    model[0].weight.grad.fill_(torch.inf)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
