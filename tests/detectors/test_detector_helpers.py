import numpy as np
import pytest

from dynaxx.core.findings import Remedy
from dynaxx.detectors._blocks import blocks
from dynaxx.detectors._dynamics import dynamics, lengthened, raised
from dynaxx.detectors._facts import checked
from dynaxx.detectors._progress import ceiling, opening, progress
from dynaxx.detectors._read import Track, optional, track, unbroken
from dynaxx.detectors._structure import blocked, structural
from dynaxx.detectors._weigh import MOST, Suspect, ranked
from dynaxx.errors import NotApplicable


def test_bayes_by_hand():
    suspect = Suspect("label_noise", 0.2).weigh(True, 8, "a").weigh(False, 3, "b", against=0.5).weigh(None, 100, "c")
    assert suspect.confidence == pytest.approx(0.5)  # odds 1/4 · 8 · 1/2 = 1
    assert suspect.why == ["a"]


def test_ranked_is_sorted_bounded_and_never_empty():
    causes = ranked(
        Suspect("forgetting", 0.01), Suspect("overflow", 0.3, (Remedy(text="x"),)), Suspect("saddle", 0.999)
    )
    assert [c.name for c in causes] == ["saddle", "overflow"]
    assert causes[0].confidence == MOST
    assert [c.name for c in ranked(Suspect("saddle", 0.01))] == ["saddle"]


def test_a_gap_leaves_what_came_after(make_log, rng):
    steps = np.r_[np.arange(1, 101), np.arange(900, 1100)]
    found = unbroken(make_log({"loss": (steps, rng.random(300))}), "loss", 60)
    assert found.steps[0] == 900
    with pytest.raises(NotApplicable, match="no rows between the steps 100 and 900"):
        unbroken(make_log({"loss": (steps[:110], rng.random(110))}), "loss", 60)


def test_not_finite_values_are_left_out_and_too_many_are_told(make_log):
    values = np.ones(100)
    values[::10] = np.nan
    assert len(unbroken(make_log({"loss": values}), "loss", 60)) == 90
    values[:60] = np.inf
    with pytest.raises(NotApplicable, match="not finite"):
        unbroken(make_log({"loss": values}), "loss", 60)


def test_alternatives_and_missing_columns(make_log):
    log = make_log({"train_loss": np.ones(5)})
    assert track(log, "loss|train_loss").name == "train_loss"
    assert optional(log, "val_loss") is None
    with pytest.raises(NotApplicable, match="loss or train_loss"):
        track(make_log({}), "loss|train_loss")


def test_the_last_check_of_a_name(make_log):
    events = [{"kind": "check", "step": s, "name": "replay_batch", "values": {"x": s}} for s in (1, 5)]
    log = make_log({"loss": np.ones(5)}, events=[*events, {"kind": "checkpoint", "step": 9}])
    assert checked(log, "replay_batch") == {"x": 5}
    assert checked(log, "other") == {}


def test_noise_of_block_medians_is_what_it_says(rng):
    values = np.exp(0.1 * rng.standard_normal(3200))
    cut = blocks(Track(name="loss", steps=np.arange(3200), values=values), size=32)
    assert cut.noise == pytest.approx(cut.medians.std(), rel=0.25)
    assert cut.noise == pytest.approx(1.2533 * 0.1 / np.sqrt(32), rel=0.3)


def test_progress_counts_what_is_left(rng):
    steps = np.arange(1, 2001)
    loss = Track(name="loss", steps=steps, values=2 - steps / 2000 + 0.01 * rng.standard_normal(2000))
    found = progress(loss)
    assert found.gained == pytest.approx(0.5, abs=0.02)
    assert found.trend.slope == pytest.approx(-1 / 2000, rel=0.05)
    assert found.chance(0.01, 200.0) > 0.99  # it falls by 0.1 of a level of 1
    assert found.chance(0.2, 200.0) < 0.01
    assert found.odometer(0.05) < found.odometer(0.01)


def test_the_beginning_of_a_run_that_explodes_is_its_first_loss():
    loss = Track(name="loss", steps=np.arange(1, 7), values=np.array([2.3, 5.0, 76.0, 9.0, 1e4, 2e4]))
    assert (opening(loss), ceiling(loss)) == (2.3, 76.0)


def test_a_raised_rate_and_longer_updates_are_seen(make_log):
    at = np.arange(1, 201)
    jump = np.where(at < 150, 1.0, 4.0)
    log = make_log({"lr": (at, jump[:, None], ("g",)), "update_ratio.total": (at[::4], jump[::4])})
    assert raised(log, 150)
    assert not raised(log, 100)
    assert lengthened(log, 158)
    assert not lengthened(log, 149)  # plain gradient descent: what follows the rise may be the batch's own doing
    adam = make_log({"update_ratio.total": (at[::4], jump[::4])}, {"optimizer": {"class": "AdamW", "groups": []}})
    assert not lengthened(adam, 149)  # fourfold is what Adam does with a strange batch
    far = make_log(
        {"update_ratio.total": (at[::4], 5 * jump[::4] - 4)}, {"optimizer": {"class": "AdamW", "groups": []}}
    )
    assert lengthened(far, 149)
    assert raised(make_log({}), 10) is None
    assert lengthened(make_log({}), 10) is None


def test_figures_of_a_stretch_are_medians_and_a_check_counts(make_log):
    at = np.arange(1, 101)
    columns = {"update_ratio.total": np.where(at > 50, 0.2, 0.001), "gradient_agreement": (at[::10], np.full(10, -0.4))}
    event = {"kind": "check", "step": 90, "name": "directional_curvature", "values": {"curvature": 3.0, "ratio": 1.7}}
    seen = dynamics(make_log(columns, events=[event]), 51, 100)
    assert (seen.ratio, seen.agreement, seen.curvature, seen.margin) == (0.2, -0.4, 1.7, None)
    assert [e.value for e in seen.evidence(51, 100)] == [0.2, -0.4]


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"grad_norm": np.zeros((50, 3))}, "underflow"),
        ({"grad_norm": np.tile([0.0, 0.0, 1.0], (50, 1))}, "loss_disconnected"),
        (
            {"grad_norm": np.tile([0.0, 0.0, 1.0], (50, 1)), "activations.dead": np.tile([0.0, 1.0], (50, 1))},
            "dead_units",
        ),
        ({"grad_norm": np.tile([1e-6, 1e-3, 1.0], (50, 1))}, "vanishing_gradients"),
        ({"grad_norm": np.ones((50, 3)), "outputs.normalised": np.ones(50)}, "double_softmax"),
    ],
)
def test_what_the_model_itself_shows(make_log, columns, cause):
    found = ranked(*structural(make_log(columns)))
    assert found[0].name == cause
    assert found[0].confidence > 0.45


def test_a_sound_model_is_not_accused(make_log):
    found = structural(make_log({"grad_norm": np.ones((50, 3)), "activations.dead": np.zeros((50, 2))}))
    assert max(s.confidence for s in found) < 0.1


def test_a_layer_that_is_dead_keeps_any_rate_from_working(make_log):
    """Rows of steps that were not measured hold no number in any layer: they hide nothing."""
    dead = np.tile([0.0, 1.0, 0.0], (50, 1))
    dead[::7] = np.nan
    norms = np.tile([0.0, 1.0, 1.0], (50, 1))
    assert blocked(make_log({"grad_norm": norms, "activations.dead": dead}))
    assert ranked(*structural(make_log({"grad_norm": norms, "activations.dead": dead})))[0].name == "dead_units"
    assert not blocked(make_log({"grad_norm": np.ones((50, 3)), "activations.dead": np.zeros((50, 3))}))
