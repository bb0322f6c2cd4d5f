"""What a loop may change under way, and ways of computing gradients that bypass the model's own call."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

QUICK = {"test_parameters_changed_between_steps_are_no_update": ["2-data_swapped", "0-double"]}


def take_step(model, optimizer, book, loss):
    loss.backward()
    book.take_step(model, optimizer)


CHANGES = {
    "double": lambda m: m.double(),
    "bfloat16_and_back": lambda m: m.bfloat16().float(),
    "data_swapped": lambda m: [setattr(p, "data", p.data.clone() * 1.5) for p in m.parameters()],
    "loaded": lambda m: m.load_state_dict({k: v * 0.9 for k, v in m.state_dict().items()}),
    "written_in_place": lambda m: [nn.init.normal_(p.data) for p in m.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", [0, 2])
def test_parameters_changed_between_steps_are_no_update(both, agrees, data, change, when):
    def loop(watch, book):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(4)):
            if i == when:
                CHANGES[change](model)
            x = x.to(model[0].weight.dtype)
            take_step(model, optimizer, book, functional.cross_entropy(model(x), y))
        return model, optimizer

    agrees(*both(loop))


def test_a_head_put_in_after_watch_is_said_to_be_missing(both, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        model[4] = nn.Linear(8, 3)
        optimizer.add_param_group({"params": model[4].parameters()})
        for x, y in data(2):
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, _ = both(loop)
    assert view.events("self_test")[0]["missing"] == [
        "2 of the optimizer's 8 parameters, because they are not the watched model's, or not yet when watch was called",
        "2 parameters (4.weight, 4.bias) never had a gradient",
    ]


def test_methods_of_the_model_instead_of_its_call(both, agrees, data):
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def score(self, x):
            return self.head(self.body(x))

    def loop(watch, book):
        model = Coder()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        for x, y in data(3):
            loss = functional.cross_entropy(model.score(x), y)
            take_step(model, optimizer, book, loss)
            run.log(loss=loss)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["loss"].steps.tolist() == [1, 2, 3]
    assert view.events("self_test")[0]["missing"][0].startswith(
        "activations, batch sizes and forward times, because no forward of the watched model in training mode was seen"
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_single_examples_by_function_transforms(both, agrees, data):
    """vmap over grad of the model's call: nothing of a transform may be kept beyond it."""

    def loop(watch, book):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)

        def loss(parameters, x, y):
            return functional.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

        for x, y in data(3):
            parameters = {name: p.detach() for name, p in model.named_parameters()}
            each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
            for name, parameter in model.named_parameters():
                parameter.grad = each[name].mean(0)
            book.take_step(model, optimizer)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view.events("self_test")[0]["missing"] == [
        "activations and logits, because the forward runs inside a transform of torch.func, whose tensors must not "
        "leave it"
    ]
    assert not any(name.startswith(("activations", "logit")) for name in view.columns)


def test_gradients_set_by_hand(both, agrees, small, data):
    """`torch.autograd.grad` fires no hook of the parameters."""

    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        for x, y in data(3):
            loss = functional.cross_entropy(model(x), y)
            for parameter, g in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.grad = g
            book.take_step(model, optimizer)
            run.log(loss=loss)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["loss"].steps.tolist() == [1, 2, 3]


def test_second_derivatives_through_the_model(both, agrees, data):
    """A gradient penalty: the backward of a backward, with a graph that is kept."""

    def loop(watch, book):
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        for x, y in data(3):
            x.requires_grad_(True)
            loss = functional.cross_entropy(model(x), y)
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            take_step(model, optimizer, book, loss + slope.square().sum())
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5.0] * 3


def test_evaluation_in_inference_mode_and_an_average_swapped_in(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
        )
        run = watch(model, optimizer)
        for x, y in data(4):
            take_step(model, optimizer, book, functional.cross_entropy(model(x), y))
            average.update_parameters(model)
            own = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average.module.state_dict())
            model.eval()
            with torch.inference_mode():
                value = functional.cross_entropy(model(x), y)
            model.train()
            model.load_state_dict(own)
            run.log(val_loss=value)
            book.note("val_loss", value)
        return model, optimizer, average

    view, book = both(loop)
    agrees(view, book)
    np.testing.assert_allclose(view["val_loss"].values, book.values["val_loss"], rtol=1e-6)
    assert view["val_loss"].steps.tolist() == [1, 2, 3, 4]
