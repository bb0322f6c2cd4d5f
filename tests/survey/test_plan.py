"""Plans: written as TOML, read back the same, every mistake named."""

from pathlib import Path

import pytest

from dynaxx.errors import BadInput, UnknownName
from dynaxx.survey.plan import Plan, PlannedBatch, PlannedOptimizer, PlannedPhase, PlannedRate, PlannedTask

WHOLE = Plan(
    task=PlannedTask(name="stdlib-lm", size="tiny", steps=1000),
    optimizer=PlannedOptimizer(name="adamw:betas=(0.9, 0.95)", clip=1.0),
    learning_rate=PlannedRate(peak=5e-3, low=3e-3, high=8e-3, schedule="one_cycle:warmup=0.1"),
    batch=PlannedBatch(size=8, low=4, high=64),
    phase=(PlannedPhase(name="descend", until=0.7), PlannedPhase(name="stabilise", until=1.0, averaging="ema")),
    evidence={"learning_rate": "lr_range: 5e-3 (3e-3 to 8e-3)"},
    not_established=("the tail of the noise: too few batches",),
)


def test_reads_back_what_it_wrote(tmp_path: Path):
    WHOLE.write(tmp_path / "plan.toml")
    assert Plan.read(tmp_path / "plan.toml") == WHOLE


def test_the_smallest_plan_reads_back():
    least = Plan(task=PlannedTask(name="digits", steps=1))
    import tomllib

    assert Plan.from_dict(tomllib.loads(least.to_toml())) == least


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format = 2", "format must be 1"),
        ("[task]\nname='x'\nsteps=1", "format must be 1"),
        ("format = 1", "task is missing"),
        ("format = 1\n[task]\nname='x'", "plan.task: steps is missing"),
        ("format = 1\n[task]\nname='x'\nsteps='many'", "plan.task.steps must be of type int. Got 'many'"),
        ("format = 1\n[task]\nname='x'\nsteps=true", "must be of type int"),
        ("format = 1\ntask=3", "plan.task must be a table"),
        ("format = 1\n[task]\nname='x'\nsteps=0", "task.steps must be positive"),
        ("format = 1\n[task]\nname='x'\nsteps=1\n[batch]\nsize=-1", "batch.size must be positive"),
        ("format = 1\n[task]\nname='x'\nsteps=1\n[[phase]]\nname='a'\nuntil=0.5", "until must rise from above 0 to 1"),
        ("format = 1\n[task]\nname='x'\nsteps=1\n[phase]\nname='a'\nuntil=1.0", "plan.phase must be a list"),
        ("format = 1\n[not_established]\nthings=[]", "holds items"),
        ("format = ", "is not TOML"),
    ],
)
def test_names_every_mistake(tmp_path: Path, text: str, said: str):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(BadInput, match=said):
        Plan.read(tmp_path / "plan.toml")


def test_an_unknown_key_is_refused_and_the_nearest_offered(tmp_path: Path):
    (tmp_path / "plan.toml").write_text("format = 1\n[task]\nname='x'\nsteps=1\n[learning_rate]\npeek=0.1")
    with pytest.raises(UnknownName, match="'peak'"):
        Plan.read(tmp_path / "plan.toml")


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(BadInput, match="dynaxx map TASK"):
        Plan.read(tmp_path / "none.toml")
