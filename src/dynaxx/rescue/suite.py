"""Which cases there are, and trains them in processes; what is done is never done again."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from dynaxx.errors import BadInput
from dynaxx.rescue.faults import names, plant
from dynaxx.rescue.nets import NETS
from dynaxx.rescue.policies import policy as find_policy
from dynaxx.rescue.training import RESULT, Case, Ended, base_task, run_case

LABELS = "labels.json"


def cases(
    *,
    nets: Sequence[str] = tuple(NETS),
    seeds: Sequence[int] = range(5),
    alterations: Sequence[str] | None = None,
    policies: Sequence[str] = ("nothing",),
    steps: int | None = None,
    orders: int = 1,
) -> list[Case]:
    """Clean twins, and every alteration of every net, untouched and under each policy.

    Args:
        nets: The suite's nets, or tasks.
        seeds: Draws.
        alterations: What is planted; None: everything.
        policies: Who acts, each on the same cases.
        steps: Optimizer steps; None: each task's own.
        orders: Orders of the data that every case is trained on, matched. Where it is more than one, clean twins are
            trained on twice as many, so that `repairs` can tell what its measure gives to runs without a fault.

    Returns:
        The cases, clean ones first.

    Raises:
        BadInput: There is none. UnknownName: there is no such net, task, alteration or policy.
    """
    for net in nets:
        base_task(net, 0)  # what cannot be found is said before any process begins
    for policy in policies:
        find_policy(policy, 0, 1)
    chosen = [None, *(plant(name, 0).name for name in (names() if alterations is None else alterations))]
    found = [
        Case(net=net, seed=seed, alteration=name, policy=policy, steps=steps, order=order)
        for order, policy, name, seed, net in product(range(orders), policies, chosen, seeds, nets)
    ]
    more = product(range(orders, 2 * orders) if orders > 1 else (), seeds, nets)
    found += [Case(net=net, seed=seed, steps=steps, order=order) for order, seed, net in more]
    if not found:
        raise BadInput("rescue(nets=..., seeds=..., orders=...) must hold at least one of each. Got none.")
    return list(dict.fromkeys(found))


def run_suite(
    chosen: Sequence[Case], out: Path, *, workers: int = 2, progress: Callable[[int, int, Ended], None] | None = None
) -> list[Ended]:
    """Train cases, each in a folder of its own.

    Args:
        chosen: The cases.
        out: The suite's folder. A case with a result is read, not trained.
        workers: Processes, of one thread each.
        progress: Called with done, all, and what has ended.

    Returns:
        What became of each, in order.
    """
    if workers < 1:
        raise BadInput(f"rescue(workers=...) must be at least 1. Got {workers}.")
    found: dict[Case, Ended] = {}
    for ended in _ended(chosen, out, workers):
        found[ended.case] = ended
        if progress is not None:
            progress(len(found), len(chosen), ended)
    results = [found[case] for case in chosen]
    _label(results, out)
    return results


def recorded(out: Path) -> list[Ended]:
    """What became of the cases that a suite's folder holds, wherever it was recorded: nothing is trained.

    Args:
        out: The suite's folder.

    Returns:
        One per case that has ended, in the order of their folders.

    Raises:
        BadInput: It holds none.
    """
    found = [
        replace(Ended.from_dict(json.loads(path.read_text())), folder=str(path.parent))
        for path in sorted(out.glob(f"*/*/{RESULT}"))
    ]
    if not found:
        raise BadInput(
            f"recorded({str(out)!r}): there is no run of the rescue suite. Record some: dynaxx rescue --out DIR."
        )
    return found


def _ended(chosen: Sequence[Case], out: Path, workers: int) -> Iterator[Ended]:
    if workers == 1:
        yield from (run_case(case, out) for case in chosen)
        return
    # Forked processes inherit locks of torch's threads in any state.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for future in as_completed([pool.submit(run_case, case, out) for case in chosen]):
            yield future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _label(results: Sequence[Ended], out: Path) -> None:
    """What was planted where, by folder, for who wants to look for it."""
    path = out / LABELS
    labels = json.loads(path.read_text()) if path.exists() else {}
    for ended in results:
        if ended.status != "not applicable":
            labels[ended.case.key] = {k: v for k, v in ended.as_dict().items() if k != "folder"}
    path.write_text(json.dumps(labels, indent=1))
