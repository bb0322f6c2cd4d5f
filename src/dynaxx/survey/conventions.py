"""What a plan says of warm-up and weight decay, which a map does not vary: what is kept, seen, and usual."""

import warnings
from collections.abc import Sequence

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dynaxx.core.isolation import isolated_random
from dynaxx.core.task import Task
from dynaxx.session.optimizers import optimizer_for
from dynaxx.survey.results import Result

WALKED = 10_000
"""Steps of a schedule that are looked at for its peak, at most; some 10 µs each."""
NEXT = 10**0.5
"""Ratio of neighbouring rates of a scan: nearer than that a divergence has no tried rate below it but the best."""
COUPLED = ("Adam", "NAdam", "RAdam")
"""Optimizers of torch that add decay to the gradient unless told otherwise."""
USUAL = "usual are 0.01 (torch's AdamW) to 0.1 (language models: Brown et al. 2020)"
USUAL_SGD = "usual under SGD are 1e-4 (He et al. 2016) to 5e-4 (Zagoruyko & Komodakis 2016)"


def rise(task: Task) -> float:
    """How long a task's schedule warms up.

    Args:
        task: The task; its schedule is walked through beside a model that is thrown away.

    Returns:
        Steps until the rate is largest, as a share of the planned ones; 0 where it begins there.

    Example:
        stdlib-lm rises over 40 of its 1000 steps: 0.04.
    """
    with isolated_random(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, that the optimizer takes no step in between
        optimizer = task.optimizer(task.model())
        scheduler = task.scheduler(optimizer)
        if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
            return 0.0
        rates = [_largest(optimizer, "lr")]
        for _ in range(min(task.steps, WALKED) - 1):
            scheduler.step()
            rates.append(_largest(optimizer, "lr"))
    peak = rates.index(max(rates))
    return (peak + 1) / task.steps if peak else 0.0


def warm_up(task: Task, trained: Sequence[Result], rate: float | None) -> tuple[str, str]:
    """What is said of the warm-up: the task's is kept, and judged by whether short trainings diverged with it.

    Args:
        task: The task.
        trained: Short trainings by the optimizer that is planned, on the task's schedule, compressed.
        rate: The planned rate as a factor on the task's own, where these trainings differ in it; None: they do not.

    Returns:
        Sentences, and how sure they are.
    """
    share = rise(task)
    own = f"the task's own, {share:.2g} of the steps ({round(share * task.steps)})" if share else "none, as the task"
    if not trained:
        return f"{own}; no short training shows more.", "low: kept as it is"
    steps = max(result.steps for result in trained)
    within = f"Short trainings reach their peak after {max(1, round(share * steps))} of {steps} steps"
    wild = [result.member.rate for result in trained if result.diverged]
    if not wild:
        top = max(result.member.rate for result in trained)
        far = "at this rate" if rate is None else f"up to {top / rate:.2g} times this rate"
        said = f"{own}. {within} and none diverged, {far}: stability asks for no longer one."
        return said, "fair: stability was seen in short trainings, no other length was compared"
    above = "this rate" if rate is None else f"{min(wild) / rate:.2g} times this rate"
    said = f"{own}. {within} and diverged at {above}"
    if rate is not None and min(wild) > NEXT * rate:
        return f"{said}, beyond its neighbours: no longer one is needed.", "fair: seen in short trainings"
    return (
        f"{said}: a longer one may be needed. Under Adam 2/(1 - β₂) steps are usual (Ma & Yarats 2021).",
        "low: no other length was compared",
    )


def weight_decay(task: Task, chosen: str) -> tuple[str, str]:
    """What is said of weight decay, and of the other constants of an Adam.

    Args:
        task: The task.
        chosen: The planned optimizer; "task" for the task's own.

    Returns:
        Sentences, and how sure they are.
    """
    with isolated_random():
        model = task.model()
        optimizer = task.optimizer(model) if chosen == "task" else optimizer_for(chosen, model)
    whose = "the task's own" if chosen == "task" else f"{chosen}'s own, as it was compared"
    decay, usual = _largest(optimizer, "weight_decay"), USUAL_SGD if isinstance(optimizer, SGD) else USUAL
    if not decay:
        said = f"none, {whose}; {usual}."
    elif type(optimizer).__name__ in COUPLED and not optimizer.defaults.get("decoupled_weight_decay"):
        said = (
            f"{decay:g}, {whose}, added to the gradient, which Adam then divides by √v: decoupled, as AdamW has it, it "
            "acts on all weights alike (Loshchilov & Hutter 2019)."
        )
    else:
        said = f"{decay:g}, {whose}, on {_decayed(optimizer):.0%} of the weights; {usual}."
    betas = {group["betas"][1] for group in optimizer.param_groups if "betas" in group}
    if betas and min(betas) > 0.95:
        said += f" β₂ is {min(betas):g}; for language models 0.95 is usual (Brown et al. 2020)."
    return said, "low: by convention; decay shows late in a training, so no other was compared"


def _largest(optimizer: Optimizer, name: str) -> float:
    return max(float(group.get(name, 0.0)) for group in optimizer.param_groups)


def _decayed(optimizer: Optimizer) -> float:
    """Share of the weights that decay."""
    sizes = [
        (group.get("weight_decay", 0.0) > 0, sum(p.numel() for p in group["params"]))
        for group in optimizer.param_groups
    ]
    return sum(size for decays, size in sizes if decays) / sum(size for _, size in sizes)
