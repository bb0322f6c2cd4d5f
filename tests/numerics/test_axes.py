import pytest

from dynaxx.numerics.axes import Factor, fix, fixed, leaves, merge, reshape


def sizes(axis):
    return [leaf.size for leaf in leaves(axis)]


def test_a_coarse_axis_is_split_where_it_meets_a_finer_one():
    one, two = (Factor(12),), (Factor(3), Factor(4))
    merge(one, two, "here")
    assert sizes(one) == [3, 4]
    assert [a is b for a, b in zip(leaves(one), leaves(two), strict=True)] == [True, True]


def test_two_products_are_refined_until_they_agree():
    one, two = (Factor(6), Factor(2)), (Factor(2), Factor(6))
    merge(one, two, "here")
    assert sizes(one) == sizes(two) == [2, 3, 2]
    assert leaves(one) == leaves(two)


def test_products_without_a_common_refinement_are_fixed():
    one, two = (Factor(4), Factor(3)), (Factor(3), Factor(4))
    merge(one, two, "here")
    assert all(leaf.fixed == "here" for leaf in leaves(one) + leaves(two))


def test_a_class_that_is_split_is_split_everywhere():
    a, b, c = Factor(12), Factor(12), Factor(12)
    a.unite(b)
    b.unite(c)
    a.split(4)
    assert sizes((c,)) == [4, 3]
    fix((c,), "why")
    assert all(leaf.fixed == "why" for leaf in leaves((a,)))


def test_what_meets_something_fixed_is_fixed():
    free = (Factor(5),)
    merge(free, fixed(5, "the data"), "here")
    assert leaves(free)[0].fixed == "the data"


@pytest.mark.parametrize(("before", "after", "expected"), [
    ([2, 3, 4], [2, 12], [[2], [3, 4]]),
    ([2, 12], [2, 3, 4], [[2], [3], [4]]),
    ([8, 1, 6], [8, 3, 2], [[8], [3], [2]]),
    ([4, 6], [2, 2, 6, 1], [[2], [2], [6], []]),
    ([], [1, 1], [[], []]),
])  # fmt: skip
def test_a_reshape_keeps_the_order_of_entries(before, after, expected):
    axes = tuple((Factor(n),) for n in before)
    found = reshape(axes, after, "here")
    assert [sizes(axis) for axis in found] == expected
    assert not any(leaf.fixed for axis in found for leaf in leaves(axis))


def test_a_reshape_across_factors_fixes_them():
    axes = ((Factor(4),), (Factor(3),))
    found = reshape(axes, [3, 4], "here")
    assert all(leaf.fixed for axis in (*axes, *found) for leaf in leaves(axis))
