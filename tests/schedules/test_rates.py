"""The composition of learning rates: its product, its meso factors against hand-computed ones, its state."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx.core.rates import RateFactors
from dynaxx.core.records import Axis
from dynaxx.errors import BadInput
from dynaxx.schedules import Cosine, Meso, Micro, Rates
from dynaxx.schedules._meso import FAST

LAYERS = Axis(name="layer", labels=("a", "b", "c"), weights=(100.0, 10.0, 1.0))


def test_factors_compose_in_any_order():
    a = RateFactors(macro=0.5, layers=(2.0, 1.0))
    b = RateFactors(micro=1.25, reactive=0.5)
    c = RateFactors(layers=(0.5, 4.0))
    assert a * b * c == c * b * a == RateFactors(macro=0.5, micro=1.25, reactive=0.5, layers=(1.0, 4.0))
    assert (a * b * c).group == 0.3125


@pytest.mark.parametrize("shape", ["cosine", "triangular"])
@pytest.mark.parametrize("period", [2, 3, 7, 20])
def test_micro_has_mean_one_and_its_period(shape, period):
    micro = Micro(period=period, amplitude=0.3, shape=shape)
    values = np.array([micro.factor(t) for t in range(2 * period)])
    assert values.mean() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(values[:period], values[period:], atol=1e-12)
    assert values.min() >= 0.7 - 1e-12
    assert values.max() <= 1.3 + 1e-12


def test_micro_waves():
    cosine, triangle = Micro(period=8, amplitude=0.5), Micro(period=8, amplitude=0.5, shape="triangular")
    assert [cosine.factor(t) for t in range(5)] == pytest.approx(
        [1, 1 + math.sqrt(0.125), 1.5, 1 + math.sqrt(0.125), 1]
    )
    assert [triangle.factor(t) for t in range(8)] == pytest.approx([1, 1.25, 1.5, 1.25, 1, 0.75, 0.5, 0.75])


def geometric_mean(factors, weights):
    return math.exp(np.dot(weights, np.log(factors)) / np.sum(weights))


def test_strength_one_gives_every_layer_the_same_update_ratio():
    meso = Meso(strength=1.0, caution=0.0, spread=1e6, memory=10)
    ratios = [1e-3, 5e-3, 2e-4]
    factors = meso.factors(meso.observe(meso.begin(3), ratios, [1.0, 2.0, 3.0]), LAYERS.weights)
    evened = np.multiply(factors, ratios)
    np.testing.assert_allclose(evened, evened[0], rtol=1e-12)
    assert geometric_mean(factors, LAYERS.weights) == pytest.approx(1.0)


def test_a_growing_gradient_is_held_back_by_its_growth():
    """Ratios are equal; layer b's gradient jumps by e: recent and past averages differ by (d_past − d_recent)."""
    meso = Meso(strength=1.0, caution=1.0, memory=50, every=1)
    history = meso.begin(2)
    for _ in range(400):
        history = meso.observe(history, [1e-3, 1e-3], [1.0, 1.0])
    history = meso.observe(history, [1e-3, 1e-3], [1.0, math.e])
    growth = (1 - 0.5 ** (FAST / 50)) - (1 - 0.5 ** (1 / 50))
    a, b = meso.factors(history, [1.0, 1.0])
    assert math.log(b) == pytest.approx(-growth / 2)
    assert math.log(a) == pytest.approx(growth / 2)


def test_factors_rise_slowly_and_remember():
    meso = Meso(strength=1.0, caution=0.0, memory=100, every=10)
    history = meso.begin(2)
    seen = []
    for _ in range(10):
        history = meso.observe(history, [1e-3, 4e-3], [1.0, 1.0])
        seen.append(meso.factors(history, [1.0, 1.0])[0])
    np.testing.assert_allclose(np.log(seen), np.log(2) * np.arange(1, 11) / 10)
    for _ in range(90):
        history = meso.observe(history, [1e-3, 4e-3], [1.0, 1.0])
    for _ in range(10):  # memory / every measurements count half
        history = meso.observe(history, [1e-3, 1e-3], [1.0, 1.0])
    assert meso.factors(history, [1.0, 1.0])[0] == pytest.approx(2**0.5)


positive = st.floats(1e-12, 1e12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=8),
    st.lists(st.sampled_from([0.0, math.nan, math.inf, 1.0]), min_size=8, max_size=8),
    st.floats(1.0, 100.0),
)
def test_bounds_hold_for_whatever_is_measured(rows, spoil, spread):
    weights, ratios, gradients = map(list, zip(*rows, strict=True))
    ratios = [s if s != 1.0 else r for s, r in zip(spoil, ratios, strict=False)]
    meso = Meso(strength=1.0, caution=2.0, spread=spread, memory=1)
    history = meso.begin(len(rows))
    for scale in (1.0, 3.0):
        history = meso.observe(history, ratios, [scale * g for g in gradients])
    factors = np.array(meso.factors(history, weights))
    valid = np.isfinite(ratios) & (np.array(ratios) > 0)
    assert (factors[~valid] == 1.0).all()
    assert factors.max() / factors.min() <= spread * (1 + 1e-9)
    if valid.any():
        assert geometric_mean(factors, weights) == pytest.approx(1.0, rel=1e-6)


def test_rates_multiply_and_their_state_goes_on():
    def build():
        return Rates(
            macro=Cosine(steps=100, warmup=10), micro=Micro(period=6), meso=Meso(memory=20, every=5, strength=1.0)
        )

    rates = build()
    rates.bind(LAYERS)
    assert rates.factors(3).layers is None
    assert rates.factors(3).group == 0.4 * Micro(period=6).factor(3)
    generator = np.random.default_rng(0)
    rows = generator.lognormal(size=(8, 2, 3))
    for ratios, gradients in rows[:4]:
        rates.observe(ratios, gradients)
    again = build()
    again.load_state_dict(rates.state_dict())
    again.bind(LAYERS)
    assert again.factors(7) == rates.factors(7)
    assert rates.factors(7).layers is not None
    for ratios, gradients in rows[4:]:
        rates.observe(ratios, gradients)
        again.observe(ratios, gradients)
    assert again.factors(7) == rates.factors(7)
    other = Axis(name="layer", labels=("a", "b"), weights=(1.0, 1.0))
    with pytest.raises(BadInput, match=r"are of a model with 3 layers \(a, …\), and this one has 2"):
        again.bind(other)
    torch.save(rates.state_dict(), (buffer := io.BytesIO()))
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == rates.state_dict()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Meso(strength=1.5), "strength=...\\) must be in \\[0, 1\\]. Got 1.5"),
        (lambda: Meso(caution=-1.0), "caution=...\\) must be finite and not negative"),
        (lambda: Meso(spread=0.5), "spread=...\\) must be a finite ratio of at least 1"),
        (lambda: Meso(memory=0), "memory=...\\) must be an integer of at least 1"),
        (lambda: Meso(every=2.5), "every=...\\) must be an integer"),
        (lambda: Micro(period=1), "period=...\\) must be an integer of at least 2 steps. Got 1"),
        (lambda: Micro(period=4, amplitude=1.0), "amplitude=...\\) must be a share in \\[0, 1\\)"),
        (lambda: Micro(period=4, shape="square"), "must be 'cosine' or 'triangular'. Got 'square'"),
        (lambda: Rates(macro="cosine"), "Rates\\(macro=...\\) must be a Curve"),
        (lambda: Rates(meso=True), "Rates\\(meso=...\\) must be a Meso"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(BadInput, match=said):
        make()
