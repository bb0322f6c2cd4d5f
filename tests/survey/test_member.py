"""Members and their content addresses."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynaxx.errors import BadInput, UnknownName
from dynaxx.survey.member import Addresses, Member, product

TASKS = Path(__file__).with_name("fleet_tasks.py")
BASE = Member(task=f"{TASKS}:Noisy", steps=30)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"horizon": 29}, "horizon"),
        ({"evaluations": 0}, "evaluations"),
        ({"optimizer": "adam:0.1"}, "name:option=value"),
        ({"optimizer": "adam:lr=open('x')"}, "name:option=value"),
    ],
)
def test_bad_numbers_are_refused_by_name(change, word):
    with pytest.raises(BadInput, match=word):
        replace(BASE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 31},
        {"seed": 1},
        {"order_seed": 1},
        {"rate": 1.5},
        {"optimizer": "adam"},
        {"batch_size": 4},
        {"horizon": 60},
        {"evaluations": 1},
        {"signals": ("lr",)},
        {"task": f"{TASKS}:Bowl"},
    ],
)
def test_whatever_determines_the_training_changes_its_address(change):
    assert Addresses()(replace(BASE, **change)) != Addresses()(BASE)


def test_the_address_follows_the_source_and_not_the_place(tmp_path):
    before = Addresses()(BASE)
    moved = shutil.copy(TASKS, tmp_path / "moved_tasks.py")
    assert Addresses()(replace(BASE, task=f"{moved}:Noisy")) == before
    edited = tmp_path / "edited_tasks.py"
    edited.write_text(TASKS.read_text().replace("lr=0.05", "lr=0.06"))
    assert Addresses()(replace(BASE, task=f"{edited}:Noisy")) != before


def test_equal_numbers_of_other_types_are_one_address():
    assert Addresses()(replace(BASE, rate=np.float64(1), seed=np.int64(0))) == Addresses()(replace(BASE, rate=1))


def test_a_start_is_the_folder_of_a_checkpoint(tmp_path):
    with pytest.raises(BadInput, match="committed checkpoint"):
        Addresses()(replace(BASE, start=str(tmp_path)))


def test_unknown_task():
    with pytest.raises(UnknownName):
        Addresses()(Member(task="digit", steps=1))


def test_product_and_plain_data():
    members = product(
        "digits", steps=5, seeds=(0, 1), rates=(1, 2), optimizers=(None, "adam:lr=0.1"), order_seeds=(None, 7)
    )
    assert len(set(members)) == 16
    assert all(Member.from_dict(member.to_dict()) == member for member in members)
    with pytest.raises(BadInput, match="rates"):
        product("digits", steps=5, rates=())


def test_words_tell_members_apart():
    member = replace(BASE, optimizer="adam", rate=3.0, order_seed=4)
    assert str(member) == "adam · rate × 3 · seed 0 · order 4"
