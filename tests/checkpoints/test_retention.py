import itertools
import math
from pathlib import Path

import pytest

from dynaxx.checkpoints.manifest import CheckpointInfo, Origin
from dynaxx.checkpoints.policy_words import policy
from dynaxx.checkpoints.retention import All, Best, Every, Last, Newer, Spread
from dynaxx.errors import BadInput, UnknownName


def checkpoint(number, step, origin=None, **facts):
    id = f"{number:06d}-{number:08x}"
    path = Path("/run/checkpoints") / f"{step:010d}-{id}"
    # The clock runs backwards: nothing may be ordered by it.
    created = f"2026-01-01T00:{59 - number % 60:02d}:00+00:00"
    return CheckpointInfo(step=step, id=id, path=path, created=created, size=10, facts=facts, origin=origin)


def numbers(ids):
    return {int(id[:6]) for id in ids}


LINE = [checkpoint(n, 100 * n) for n in range(1, 8)]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("last:1", {7}),
        ("last:3", {5, 6, 7}),
        ("last:99", {1, 2, 3, 4, 5, 6, 7}),
        ("newer:200", {5, 6, 7}),
        ("newer:199", {6, 7}),
        ("every:300", {1, 3, 6}),  # at or after 0, 300, 600
        ("every:250", {1, 3, 5}),  # 0-249: 100; 250-499: 300; 500-749: 500
        ("spread:7", {1, 2, 3, 4, 5, 6, 7}),
        ("spread:4", {1, 3, 5, 7}),  # 2 goes, then 4, then 6
        ("spread:2", {1, 7}),
        ("spread:1", {7}),
        ("spread:7:40", {1, 3, 5, 7}),  # 10 bytes each
        ("spread:7:5", set()),
        ("all", {1, 2, 3, 4, 5, 6, 7}),
        ("last:1,every:300", {1, 3, 6, 7}),
    ],
)
def test_on_a_straight_line(words, kept):
    for order in (LINE, LINE[::-1]):
        assert numbers(policy(words).keep(order)) == kept
    assert str(policy(str(policy(words)))) == str(policy(words))


def test_best_of_enumerated_values():
    values = [0.5, math.nan, 0.3, 0.3, math.inf, None, "0.1", 0.9, -0.2]
    infos = [
        checkpoint(n + 1, 10 * n, **({} if value is None else {"val_loss": value})) for n, value in enumerate(values)
    ]
    assert numbers(Best(1).keep(infos)) == {9}
    assert numbers(Best(2).keep(infos)) == {9, 3}  # of the equal ones the earlier
    assert numbers(Best(3).keep(infos)) == {9, 3, 4}
    assert numbers(Best(9).keep(infos)) == {9, 3, 4, 1, 8}
    assert numbers(Best(2, "val_loss", "max").keep(infos)) == {8, 1}
    assert Best(2, "accuracy").keep(infos) == frozenset()


def test_what_the_training_went_back_past_is_not_the_last_but_may_be_the_best():
    infos = [
        checkpoint(1, 100, val_loss=3.0),
        checkpoint(2, 200, val_loss=2.0),
        checkpoint(3, 300, val_loss=1.0),
        checkpoint(4, 150, Origin(checkpoint=LINE[0].path.name, number=4), val_loss=2.5),
    ]
    assert numbers(Last(2).keep(infos)) == {1, 4}
    assert numbers(Every(100).keep(infos)) == {1}  # 100 and 150 are of the same hundred
    assert numbers(Newer(50).keep(infos)) == {1, 4}
    assert numbers(Best(1).keep(infos)) == {3}


def test_every_never_changes_its_mind():
    """What it keeps of a line stays kept whatever is saved later, so that thinning twice loses nothing."""
    steps = [3, 17, 20, 39, 41, 55, 80, 99, 100, 140]
    infos = [checkpoint(n + 1, step) for n, step in enumerate(steps)]
    for n in range(1, len(infos)):
        kept = Every(20).keep(infos[:n])
        survivors = [info for info in infos[:n] if info.id in kept]
        assert kept <= Every(20).keep([*survivors, *infos[n:]])


@pytest.mark.parametrize("count", [4, 8, 16])
def test_thinned_out_after_every_save_it_stays_spread(count):
    kept = []
    for number in range(1, 401):
        kept.append(checkpoint(number, 10 * number))
        chosen = Spread(count).keep(kept)
        kept = [info for info in kept if info.id in chosen]
        assert len(kept) == min(count, number)
        steps = [info.step for info in kept]
        assert (steps[0], steps[-1]) == (10, 10 * number)
        even = (steps[-1] - steps[0]) / max(1, count - 1)
        assert number < count or max(b - a for a, b in itertools.pairwise(steps)) <= 2 * even


def test_a_union_keeps_what_any_part_keeps():
    parts = [Last(2), Every(300), Best(1, "x"), All()]
    for some in itertools.combinations(parts[:3], 2):
        assert (some[0] | some[1]).keep(LINE) == some[0].keep(LINE) | some[1].keep(LINE)
    assert (parts[0] | parts[3]).keep(LINE) == All().keep(LINE)
    for part in parts:
        assert part.keep([]) == frozenset()


@pytest.mark.parametrize(
    "words", ["", " , ", "last", "last:0", "last:-1", "last:2:3", "every:x", "best:1:loss:best", "all:1", "newer:0"]
)
def test_words_that_cannot_be_read(words):
    with pytest.raises(BadInput):
        policy(words)


def test_an_unknown_policy_offers_the_nearest():
    with pytest.raises(UnknownName, match="'best'"):
        policy("bets:2")


def test_diverse_needs_its_place():
    with pytest.raises(BadInput, match="place"):
        policy("diverse:3")
