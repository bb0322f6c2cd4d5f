"""Step time and state of our optimizers against their peers', in turns on one net: `python benchmarks/methods_step.py`.

SOAP against pytorch_optimizer's at equal frequency and block size (no side is cut), Muon against torch's, AdamW against
torch's. Gradients are fixed and the steps alone are timed, in processor time, which waiting for
other programs does not inflate; a row is the median of the ratios of paired turns, with the quartiles as spread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from dynaxx.optim.adamw import AdamW
from dynaxx.optim.muon import Muon
from dynaxx.optim.soap import SOAP

SHAPES = {
    "narrow (4 layers of width 64)": [(192, 64), (64, 64), (256, 64), (64, 256), (64,), (64,)] * 4,
    "wide (2 layers of width 256)": [(256, 256), (256, 256), (256, 256), (256, 256), (256,), (256,)] * 2,
}


def parameters(shapes):
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def state_bytes(optimizer):
    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for each in value:
                yield from tensors(each)

    return sum(t.numel() * t.element_size() for s in optimizer.state.values() for v in s.values() for t in tensors(v))


def turn(optimizer, steps):
    begin = time.process_time()
    for _ in range(steps):
        optimizer.step()
    return (time.process_time() - begin) / steps


def compare(shapes, ours: Callable, theirs: Callable, pairs, steps):
    one, other = ours(parameters(shapes)), theirs(parameters(shapes))
    for optimizer in (one, other):
        turn(optimizer, steps)
    times = []
    for i in range(pairs):
        first, second = (one, other) if i % 2 else (other, one)
        a, b = turn(first, steps), turn(second, steps)
        times.append((a, b) if first is one else (b, a))
    ratios = [a / b for a, b in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": middle, "quartiles": [low, high], "ms": 1e3 * statistics.median(a for a, _ in times),
        "peer_ms": 1e3 * statistics.median(b for _, b in times), "memory_ratio": state_bytes(one) / state_bytes(other),
    }  # fmt: skip


def contests():
    def matrices(shapes):
        return [p for p in shapes if p.dim() == 2]

    yield "AdamW : torch AdamW", AdamW, torch.optim.AdamW
    yield (
        "Muon : torch Muon (matrices)",
        lambda p: Muon(matrices(p), adjust="original"),
        lambda p: torch.optim.Muon(matrices(p)),
    )
    try:
        from pytorch_optimizer import SOAP as PEER
    except ImportError:
        print("pytorch_optimizer is not installed: its SOAP is left out")
        return
    for every in (1, 5, 10):
        for carry in ("permute", "hadamard"):
            yield (
                f"SOAP : pytorch_optimizer SOAP, every {every}, {carry}",
                lambda p, every=every, carry=carry: SOAP(p, every=every, carry=carry),
                lambda p, every=every: PEER(p, precondition_frequency=every, max_precondition_dim=256),
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn; a multiple of every frequency")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--only", default="", help="contests whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for net, shapes in SHAPES.items():
        for name, ours, theirs in contests():
            if given.only not in name:
                continue
            row = compare(shapes, ours, theirs, given.pairs, given.steps)
            found[f"{net}: {name}"] = row
            print(
                f"{net:30} {name:48} {row['ratio']:.2f} ({row['quartiles'][0]:.2f}–{row['quartiles'][1]:.2f})  "
                f"{row['ms']:.2f} ms : {row['peer_ms']:.2f} ms   memory {row['memory_ratio']:.2f}"
            )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
