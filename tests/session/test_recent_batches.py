import torch

from dynaxx.session.recent import KEPT, LONGEST, ROOM, Recent


def test_small_batches_are_kept_for_longer_than_a_look_takes():
    recent = Recent(keep=True)
    for n in range(200):
        recent.add((torch.full((4,), n), {"label": torch.tensor([n])}))
    assert [int(batch[1]["label"]) for batch in recent.batches] == list(range(192, 200))
    assert [int(batch[1]["label"]) for batch in recent.earlier] == list(range(192 - LONGEST, 192))
    recent.clear()
    assert (recent.batches, recent.earlier) == ((), ())


def test_large_ones_take_no_more_than_their_room_and_the_last_ones_stay():
    recent = Recent(keep=True)
    for elements, kept in ((ROOM // 4 // 20, 20), (ROOM // 4, KEPT)):
        batch = torch.empty(1).expand(elements)  # as many elements on end, without the memory
        for _ in range(100):
            recent.add([batch])
        assert len(recent.earlier) + len(recent.batches) == kept


def test_nothing_is_kept_where_nobody_looks():
    recent = Recent(keep=False)
    recent.add(torch.zeros(2))
    assert (recent.batches, recent.earlier) == ((), ())
