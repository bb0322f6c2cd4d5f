from dynaxx.runlog.lineage import Save, in_order, lanes, parents


def save(number, step, origin=None):
    return Save(id=f"{number:06d}-x", step=step, origin=origin)


def steps(lines):
    return [[s.step for s in lane] for lane in lines]


def by_number(found):
    return {int(a[:6]): None if b is None else int(b[:6]) for a, b in found.items()}


def test_a_straight_line():
    saves = [save(1, 10), save(2, 20), save(3, 30)]
    assert by_number(parents(reversed(saves))) == {1: None, 2: 1, 3: 2}
    assert steps(lanes(saves)) == [[10, 20, 30]]
    assert lanes([]) == []


def test_a_recorded_return_beats_what_steps_suggest():
    """Back from 600 to 500 although one at 550 is there: steps alone would take 550 for the parent."""
    origin = ("000001-x", 4)
    saves = [save(1, 500), save(2, 550), save(3, 600), save(4, 580, origin), save(5, 620, origin)]
    assert by_number(parents(saves)) == {1: None, 2: 1, 3: 2, 4: 1, 5: 4}
    assert steps(lanes(saves)) == [[500, 580, 620], [500, 550, 600]]
    unrecorded = [save(s.number, s.step) for s in saves]
    assert by_number(parents(unrecorded))[4] == 2


def test_returning_twice_to_the_same_one_makes_two_lines():
    saves = [save(1, 100), save(2, 200, ("000001-x", 2)), save(3, 200, ("000001-x", 3)), save(4, 300, ("000001-x", 3))]
    assert by_number(parents(saves)) == {1: None, 2: 1, 3: 1, 4: 3}
    assert steps(lanes(saves)) == [[100, 200, 300], [100, 200]]


def test_a_pruned_parent_is_bridged_without_jumping_to_another_line():
    # 1 (500) was pruned; 2 (550) was saved after it, so it is no ancestor of what went on from 1.
    saves = [save(2, 550), save(4, 560, ("000001-x", 4))]
    assert by_number(parents(saves)) == {2: None, 4: None}
    # A pruned link in the middle of a line: the nearest one before it.
    assert by_number(parents([save(1, 100), save(3, 300), save(5, 400, ("000002-x", 5))])) == {1: None, 3: 1, 5: 1}


def test_order_is_by_number_not_by_step():
    assert [s.number for s in in_order([save(3, 1), save(1, 9), save(2, 5)])] == [1, 2, 3]


def test_a_forged_circle_ends():
    a = Save(id="000001-x", step=5, origin=("000002-x", 1))
    b = Save(id="000002-x", step=9, origin=("000001-x", 2))
    assert sum(len(lane) for lane in lanes([a, b])) <= 4
