"""Every figure against what the synthetic runs were made of."""

import importlib
import pkgutil

import numpy as np
import pytest

from dynaxx import figures
from dynaxx.core.contracts import Figure
from dynaxx.core.panels import HeatMap, Lines, Table
from dynaxx.errors import NotApplicable
from dynaxx.figures._path import Path
from dynaxx.figures.trajectory import principal_path


def panel(view, figure, title):
    (found,) = [p for p in figures.entries()[figure].panels(view) if p.title.startswith(title)]
    return found


def curve(lines, label):
    (found,) = [c for c in lines.lines if c.label == label]
    return found


def test_a_file_is_a_figure_and_each_has_its_place():
    files = [m.name for m in pkgutil.iter_modules(figures.__path__) if not m.name.startswith("_")]
    assert sorted(figures.entries()) == sorted(files)
    orders = [figure.order for figure in figures.entries().values()]
    assert orders == sorted(set(orders))
    for name, figure in figures.entries().items():
        assert isinstance(figure, Figure)
        assert importlib.import_module(f"dynaxx.figures.{name}").__doc__


@pytest.mark.parametrize("name", sorted(set(figures.entries()) - {"loss", "about"}))
def test_a_run_with_nothing_but_a_loss_gets_a_reason(only_loss, name):
    with pytest.raises(NotApplicable, match=r"\w{3}"):
        figures.entries()[name].panels(only_loss)


def test_a_run_without_a_loss_says_how_to_log_one(make):
    with pytest.raises(NotApplicable, match=r"run\.log\(loss=loss\)"):
        figures.entries()["loss"].panels(make(accuracy=([1, 2], [0.1, 0.2])))


def test_loss_shows_raw_smoothed_and_validation(healthy):
    (shown,) = figures.entries()["loss"].panels(healthy)
    assert [(c.label, c.style) for c in shown.lines] == [
        ("training, each step", "faint"),
        ("training, smoothed", "line"),
        ("validation", "points"),
    ]
    assert np.array_equal(shown.lines[0].y, healthy["loss"].values)
    assert shown.y_label == "loss (nat)"
    assert shown.y_scale == "linear"


def test_the_smoothed_loss_does_not_go_on_through_a_divergence(diverged):
    (shown,) = figures.entries()["loss"].panels(diverged)
    smooth = curve(shown, "training, smoothed")
    assert np.isnan(smooth.y[smooth.x > 1400]).all()
    assert np.isfinite(smooth.y[smooth.x == 1400]).all()
    assert shown.y_scale == "log"
    assert "not finite" in shown.note


def test_metrics_join_their_validation_and_leave_the_rest_alone(make):
    view = make(
        loss=([1], [1.0]),
        accuracy=([1, 2, 3], [0.1, 0.2, 0.3]),
        val_accuracy=([3], [0.25]),
        val_f1=([3], [0.5]),
        perplexity=([1, 2], [9.0, 8.0]),
    )
    shown = {p.title: [c.label for c in p.lines] for p in figures.entries()["metrics"].panels(view)}
    assert shown == {"accuracy": ["training", "validation"], "f1": ["validation"], "perplexity": ["perplexity"]}


def test_equal_learning_rates_are_one_curve(healthy):
    shown = panel(healthy, "learning_rate", "Learning rate")
    assert [c.label for c in shown.lines] == ["group 0, group 1", "group 2"]
    assert np.allclose(shown.lines[0].y, 10 * shown.lines[1].y)


def test_a_group_that_was_added_later_starts_later(make):
    rates = np.array([[0.1, np.nan], [0.1, np.nan], [0.1, 0.2]])
    view = make(lr=([1, 2, 3], rates, "group", ("group 0", "group 1")))
    shown = panel(view, "learning_rate", "Learning rate")
    assert curve(shown, "group 1").x.tolist() == [3.0]


def test_gradients_of_the_healthy_run(healthy):
    norms = healthy["grad_norm"].values.astype(float)
    total = panel(healthy, "gradients", "Gradient norm of the whole model").lines[0]
    assert np.allclose(total.y, np.sqrt((norms**2).sum(1)))
    heat = panel(healthy, "gradients", "Gradient norm by layer")
    assert isinstance(heat, HeatMap)
    assert heat.rows[0] == "embedding"
    assert np.array_equal(heat.values, healthy["grad_norm"].values)
    spread = panel(healthy, "gradients", "Spread")
    assert np.allclose(curve(spread, "median").y, np.median(norms, axis=1))
    share = (healthy["clip_coefficient"].values < 1).mean()
    assert f"{share:.0%} of the steps were clipped" in panel(healthy, "gradients", "Clip").note
    assert "pre-clip, unscaled gradients" in panel(healthy, "gradients", "Gradient norm of the whole").note


def test_gradients_of_the_diverged_run_name_where_it_began(diverged):
    table = panel(diverged, "gradients", "Steps whose gradient")
    assert isinstance(table, Table)
    assert table.rows[0] == ("1401", "blocks.0.mlp.up", "head", "8", str(8 * 4096))
    assert "60 such steps; 20 listed" in table.note
    heat = panel(diverged, "gradients", "Gradient norm by layer")
    assert np.isinf(heat.values[heat.x > 1400]).all()


def test_updates_say_what_is_common(healthy):
    heat = panel(healthy, "updates", "Update ratio by layer")
    assert "1e-3" in heat.note
    spread = panel(healthy, "updates", "Spread")
    assert curve(spread, "1e-3").style == "dashed"
    assert set(curve(spread, "1e-3").y) == {1e-3}
    low, middle, high = (curve(spread, n).y for n in ("10 % quantile", "median", "90 % quantile"))
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_precision_counts_the_updates_left_out(make):
    skipped = ([1, 2, 3, 4], [0.0, 2.0, 0.0, 1.0])
    view = make(**{"precision.skipped": skipped, "precision.loss_scale": ([1, 2], [65536.0, 32768.0])})
    assert panel(view, "precision", "Updates left out").lines[0].y.tolist() == [0.0, 2.0, 2.0, 3.0]


def test_principal_path_of_a_circle():
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    plane, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 2)))
    path, share = principal_path(np.stack([np.cos(turn), np.sin(turn)], 1) @ plane.T + 7.0)
    assert share == pytest.approx([0.5, 0.5], abs=1e-6)
    assert path[0].tolist() == [0.0, 0.0]
    distances = np.linalg.norm(path - path[200] / 2, axis=1)
    assert distances == pytest.approx(1.0, abs=1e-6)


def test_a_random_walk_draws_an_arc_with_the_stated_shares():
    walk = np.cumsum(np.random.default_rng(0).standard_normal((400, 20_000), dtype=np.float32), axis=0)
    _, share = principal_path(walk)
    assert share == pytest.approx([6 / np.pi**2, 6 / np.pi**2 / 4], abs=0.01)


def test_the_picture_of_the_trajectory(healthy):
    picture = panel(healthy, "trajectory", "Path of the parameters")
    assert isinstance(picture, Path)
    ends = [(c.x[-1], c.y[-1]) for c in picture.lines[:-1]]
    starts = [(c.x[0], c.y[0]) for c in picture.lines[1:]]
    assert ends == starts  # one path
    _, share = principal_path(healthy["trajectory.sketch"].values)
    assert f"{share[0]:.0%}" in picture.x_label
    assert f"{share.sum():.0%} of the variance" in picture.note


def test_a_diverged_trajectory_is_drawn_up_to_its_end(diverged):
    picture = panel(diverged, "trajectory", "Path of the parameters")
    assert all(np.isfinite(c.x).all() for c in picture.lines)
    assert picture.lines[-1].label.endswith("1400")


def test_times_are_in_milliseconds_and_memory_in_gibibytes(healthy):
    times = panel(healthy, "system", "Parts of the step time")
    assert times.title.endswith("(ms)")
    assert np.median(curve(times, "backward").y) == pytest.approx(41, rel=0.1)
    assert curve(panel(healthy, "system", "Memory"), "host").y[-1] == pytest.approx(1.2, rel=1e-3)


def test_cost_names_every_signal_with_cadence_and_price(healthy):
    overhead, signals = figures.entries()["cost"].panels(healthy)
    assert ("overhead", "0.7% of the step time") in overhead.rows
    assert ("gradients as seen", "pre-clip, unscaled gradients") in overhead.rows
    assert signals.rows == (("grad_norm", "every step", "0.4 ms"), ("activations", "every 10 steps", "2 ms"))


def test_about_lists_the_run_its_layers_and_attempts(healthy):
    shown = {p.title: p for p in figures.entries()["about"].panels(healthy)}
    assert ("model", "Transformer, 1,234,567 parameters") in shown["Run"].rows
    assert ("software: torch", "2.13.0") in shown["Run"].rows
    assert len(shown["Layers"].rows) == 22
    assert shown["Attempts"].rows[0][4] == "finished"
    assert "Problems" not in shown


def test_history_tells_what_was_done_and_why(make):
    receipt = {
        "action": {"name": "learning_rate", "arguments": {"factor": 0.5}, "steps": 10, "reason": "plateau"},
        "step": 7,
        "status": "begun",
        "detail": "",
    }
    events = [
        {"kind": "warning", "step": 3, "message": "a loss is not a number"},
        {"kind": "receipt", "step": 7, "receipt": receipt},
        *({"kind": "update_left_out", "step": step, "why": "NaN"} for step in range(10, 40)),
    ]
    (table,) = figures.entries()["history"].panels(make(events, loss=([1], [1.0])))
    assert table.rows == (
        ("3", "warning", "a loss is not a number"),
        ("7", "change", "learning_rate factor 0.5 begun: plateau"),
        ("10–39", "update left out", "30 times; first: why NaN"),
    )


def test_cost_says_what_is_missing_and_the_overhead_at_the_end(make):
    events = [
        {"kind": "calibration", "step": 100, "overhead": 0.01, "budget": 0.02, "signals": []},
        {"kind": "self_test", "step": 100, "seen": "pre-clip, unscaled", "overhead": 0.01, "missing": ["activations"]},
        {"kind": "run_end", "step": 200, "overhead": 0.0125, "status": "finished"},
    ]
    overhead, missing = figures.entries()["cost"].panels(make(events, loss=([1], [1.0])))
    assert ("overhead", "1.2% of the step time") in overhead.rows
    assert missing.rows == (("activations",),)


def test_optional_figures_show_what_there_is(make):
    layers = ("a", "b")
    view = make(
        **{
            "router.load_max": ([1, 2], [[0.5, 0.6], [0.7, 0.8]], "layer", layers),
            "logit_norm": ([1, 2], [3.0, 4.0]),
            "optimizer_state.age": ([1, 2], [[1.0, 1.0], [2.0, 2.0]], "layer", layers),
            "activations.dead": ([1, 2], [[0.0, 0.0], [0.5, 0.0]], "activation", layers),
            "activations.saturated": ([1, 2], np.full((2, 2), np.nan), "activation", layers),
        }
    )
    assert [type(p) for p in figures.entries()["router"].panels(view)] == [HeatMap]
    assert [type(p) for p in figures.entries()["attention"].panels(view)] == [Lines]
    assert [p.scale for p in figures.entries()["optimizer_state"].panels(view)] == ["linear"]
    (dead,) = figures.entries()["activations"].panels(view)
    assert dead.title == "Fraction of dead units"
    assert "Without a value for any layer here: fraction of saturated activations." in dead.note


def test_a_sparse_column_is_not_smoothed(make):
    steps = [*range(1, 101), *range(200, 2000, 100)]
    view = make(logit_norm=(steps, np.sqrt(steps)), perplexity=(range(1, 101), np.ones(100)))
    (shown,) = figures.entries()["attention"].panels(view)
    assert [c.style for c in shown.lines] == ["line"]
    (dense,) = figures.entries()["metrics"].panels(view)
    assert [c.style for c in dense.lines] == ["faint", "line"]
