import numpy as np
import pytest

from dynaxx.detectors.exploding_gradients import ExplodingGradients
from dynaxx.errors import NotApplicable

STEPS = 200


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(scale, depth=(0, 0, 0, 0, 0, 0), optimizer="SGD", **more):
        """Six layers; `scale` over the steps, decades over the depth."""
        noise = rng.lognormal(0, 0.3, (STEPS, 6))
        values = np.broadcast_to(scale, (STEPS,))[:, None] * 10.0 ** np.array(depth, dtype=float) * noise
        return make_log({"grad_norm": values, **more}, manifest=facts_of(6, optimizer))

    return run


def growing(decades, start=120, over=30):
    """Level 1, then a rise by so many decades in so many steps."""
    return 10.0 ** (decades * np.clip((np.arange(STEPS) - start) / over, 0, 1))


def test_growth_over_the_steps_is_found_where_it_begins(run):
    found = ExplodingGradients().detect(run(growing(3)))
    assert found.spans[0][0] == pytest.approx(121 + 20, abs=3), "two of three decades"
    assert found.spans[-1][1] == STEPS
    assert found.severity == "warning"
    assert 2.9 < found.evidence[0].value < 3.4
    clip = next(
        r.action for cause in found.causes for r in cause.remedies if r.action and "max_norm" in r.action.arguments
    )
    assert clip.arguments["max_norm"] == pytest.approx(2 * np.sqrt(6) * np.exp(0.09), rel=0.15)


def test_one_and_a_half_decades_and_single_heavy_batches_are_no_explosion(run):
    assert ExplodingGradients().detect(run(growing(1.5))) is None
    level = np.ones(STEPS)
    level[[60, 100, 101, 150]] = 1000
    assert ExplodingGradients().detect(run(level)) is None


def test_it_is_critical_once_gradients_are_not_finite(run):
    level = growing(3)
    level[-1] = np.inf
    assert ExplodingGradients().detect(run(level)).severity == "critical"


def test_growth_towards_the_first_layers_is_another_cause(run):
    found = ExplodingGradients().detect(run(1.0, depth=(5, 4, 3, 2, 1, 0)))
    assert found.causes[0].name == "exploding_gradients"
    assert found.severity == "warning"
    assert ExplodingGradients().detect(run(1.0, depth=(5, 4, 3, 2, 1, 0), optimizer="Adam")).severity == "note"
    assert ExplodingGradients().detect(run(1.0, depth=(2, 1, 1, 1, 0, 0))) is None


@pytest.mark.parametrize(
    ("ratio", "scale", "cause"), [(0.5, 1.0, "learning_rate_too_high"), (1e-3, 200.0, "inputs_not_normalised")]
)
def test_the_cause_follows_updates_and_inputs(run, ratio, scale, cause):
    more = {"update_ratio": np.full((STEPS, 6), ratio), "inputs.mean": np.zeros(5), "inputs.std": np.full(5, scale)}
    assert ExplodingGradients().detect(run(growing(3), **more)).causes[0].name == cause


def test_a_jump_from_one_step_to_the_next_points_at_its_batch(run):
    found = ExplodingGradients().detect(run(growing(3, over=1)))
    assert found.spans == ((122, STEPS),)
    assert found.causes[0].name == "corrupted_batch"


def test_a_short_log_or_two_runs_in_one_are_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="rows"):
        ExplodingGradients().detect(make_log({"grad_norm": np.ones((3, 2))}))
    with pytest.raises(NotApplicable, match="two runs"):
        ExplodingGradients().detect(make_log({"grad_norm": ([*range(50), *range(50)], np.ones((100, 2)))}))
    with pytest.raises(NotApplicable, match="finite"):
        ExplodingGradients().detect(make_log({"grad_norm": np.full((100, 2), np.nan)}))
