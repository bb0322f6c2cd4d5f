import subprocess
import sys

import pytest

from dynaxx import catalog
from dynaxx.core.task import Task
from dynaxx.errors import BadInput, UnknownName
from dynaxx.tasks.digits import Digits

LINE = """
import torch
from dynaxx.core.task import Task
from dynaxx.tasks.digits import Digits

class Line(Task):
    def model(self):
        return torch.nn.Linear(1, 1)
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)
    def batches(self, split, seed):
        return [torch.ones(2, 1)]
    def loss(self, model, batch):
        return model(batch).mean()
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of the user's; what is loaded from it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def write(source, name="user_line.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(vars(sys.modules[name]).get("__file__")):
            del sys.modules[name]


def test_built_in_tasks_by_name_and_size():
    assert isinstance(catalog.task("digits"), Digits)
    assert catalog.task("digits", "medium").size == "medium"
    with pytest.raises(BadInput, match=r"must be one of tiny, small, medium\. Got 'giant'"):
        catalog.task("digits", size="giant")
    with pytest.raises(UnknownName, match=r"Did you mean 'stdlib-lm'"):
        catalog.task("stdlib")


def test_a_built_in_name_stays_one_beside_a_file_of_that_name(write):
    write(LINE, "digits.py")
    assert isinstance(catalog.task("digits"), Digits)
    assert type(catalog.task("digits.py")).__name__ == "Line"


def test_a_class_in_a_file(write):
    path = write(LINE + "class Other(Line):\n    steps = 7\n")
    assert catalog.task(f"{path}:Line").steps == Task.steps
    assert catalog.task("user_line.py:Other").steps == 7
    assert catalog.task("./user_line.py:Digits").sizes == Digits.sizes
    assert type(catalog.task(f"{path}:Line")) is type(catalog.task("user_line.py:Line"))


def test_the_only_task_of_a_file_needs_no_class(write):
    write(LINE)
    assert type(catalog.task("user_line.py")).__name__ == "Line"
    assert type(catalog.task("user_line.py:")).__name__ == "Line"
    write(
        LINE.replace("class Line(Task)", "class Base(Task)").replace("loss", "lose")
        + "class Only(Base):\n    loss=1\n",
        "b.py",
    )
    assert type(catalog.task("b.py")).__name__ == "Only"


def test_several_or_no_tasks_need_a_class(write):
    write(LINE + "class Other(Line): ...\n")
    with pytest.raises(BadInput, match=r"exactly one Task.*user_line\.py:MyTask\. It defines Line, Other\."):
        catalog.task("user_line.py")
    write("from dynaxx.tasks.digits import Digits", "empty.py")
    with pytest.raises(BadInput, match=r"It defines none\."):
        catalog.task("empty.py")


def test_a_file_that_is_not_there(write):
    path = write(LINE)
    with pytest.raises(
        BadInput, match=r"Task 'user_lin\.py:Line': there is no file 'user_lin\.py'.*Did you mean 'user_line\.py'"
    ):
        catalog.task("user_lin.py:Line")
    with pytest.raises(BadInput, match=r"no file 'user_line'\. Did you mean 'user_line\.py'"):
        catalog.task("user_line")
    with pytest.raises(BadInput, match=r"no file 'user_line'\. Did you mean 'user_line\.py'"):
        catalog.task("user_line:Line")
    with pytest.raises(BadInput, match=r"there is no file '.*zzz\.py'\. Check the path"):
        catalog.task(str(path.with_name("zzz.py")))
    with pytest.raises(BadInput, match=r"there is no folder 'nowhere'"):
        catalog.task("nowhere/user_line.py:Line")
    with pytest.raises(BadInput, match=r"there is no file"):
        catalog.task(f"{path.parent}/")


def test_a_class_that_is_not_there(write):
    write(LINE)
    with pytest.raises(
        UnknownName, match=r"No Task in .*user_line\.py is named 'Lime'\. Did you mean 'Line'\? There are: Line\."
    ):
        catalog.task("user_line.py:Lime")


@pytest.mark.parametrize("what", ["helper = 3", "def helper(): ...", "class helper: ..."])
def test_something_that_is_not_a_task(write, what):
    write(LINE + what)
    with pytest.raises(BadInput, match=r"helper of .* must be a subclass of dynaxx\.Task\. Got .*"):
        catalog.task("user_line.py:helper")


def test_an_incomplete_task_names_what_is_missing(write):
    write(LINE.replace("def loss", "def lose").replace("def model", "def nodel"))
    with pytest.raises(BadInput, match=r"Line of .* every method of a Task\. Missing: loss, model\."):
        catalog.task("user_line.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n\nimport nowhere_at_all\n", r"line 3: ModuleNotFoundError: No module named 'nowhere_at_all'\.$"),
        ("def f():\n    raise ValueError('a\\nb')\n\nf()\n", r"line 2: ValueError: a\.$"),
        ("import json\njson.loads('{')\n", r"line 2: JSONDecodeError: Expecting property"),
        ("x = 1\ndef f(:\n", r"line 2: SyntaxError: invalid syntax"),
        ("raise KeyError\n", r"line 1: KeyError\.$"),
        ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3\.$"),
        ("x = '\0'\n", r"cannot be loaded: .*SyntaxError: source code"),
    ],
)
def test_a_file_that_raises_is_one_line(write, source, message):
    write(source, "broken.py")
    with pytest.raises(BadInput, match=message) as caught:
        catalog.task("broken.py:Line")
    assert "\n" not in str(caught.value)
    assert "broken" not in sys.modules


def test_a_constructor_that_raises(write):
    write(LINE + "    def __init__(self):\n        self.x = 1 / 0\n")
    with pytest.raises(
        BadInput, match=r"Line of .* cannot be constructed: line 16: ZeroDivisionError: division by zero"
    ):
        catalog.task("user_line.py")
    with pytest.raises(BadInput, match=r"cannot be constructed: TypeError: .*size"):
        catalog.task("user_line.py", size="tiny")


def test_size_of_a_task_in_a_file(write):
    write(LINE + "class Sized(Line):\n    sizes = ('small', 'large')\n")
    assert catalog.task("user_line.py:Sized", "large").size == "large"
    with pytest.raises(BadInput, match=r"Line has one size only: leave out --size large"):
        catalog.task("user_line.py:Line", "large")


def test_files_of_one_name_do_not_meet(write):
    first = catalog.task(f"{write(LINE + '    steps = 1', 'a/train.py')}:Line")
    second = catalog.task(f"{write(LINE + '    steps = 2', 'b/train.py')}:Line")
    taken = catalog.task(f"{write(LINE + '    steps = 3', 'b/random.py')}:Line")
    dashed = catalog.task(f"{write(LINE + '    steps = 4', 'b/my-task.py')}:Line")
    assert [task.steps for task in (first, second, taken, dashed)] == [1, 2, 3, 4]
    assert sys.modules["random"].__file__ != sys.modules[type(taken).__module__].__file__


def test_a_file_may_import_its_neighbours_and_other_processes_may_import_it(write):
    write("STEPS = 11\n", "neighbour.py")
    path = write("from neighbour import STEPS\n" + LINE + "    steps = STEPS\n")
    kind = type(catalog.task(f"{path}:Line"))
    assert kind.steps == 11
    # What a spawned data-loader process does with the parent's search path, to unpickle what the file defines.
    code = f"import sys; sys.path = {sys.path!r}; from {kind.__module__} import Line; print(Line.steps)"
    shown = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "11"
