import subprocess
import sys
import textwrap

import pytest

from dynaxx import catalog
from dynaxx.errors import BadInput, DynaxxWarning, UnknownName


def test_tasks_are_shown_with_dashes():
    assert catalog.names("tasks") == ["diabetes", "digits", "stdlib-lm"]
    assert catalog.get("tasks", "stdlib-lm") is catalog.get("tasks", "stdlib_lm")
    assert catalog.get("tasks", "stdlib-lm").__name__ == "StdlibLM"


def test_listing_and_describing_import_neither_torch_nor_an_entry():
    code = """
        import sys
        from dynaxx import catalog
        for family in catalog.FAMILIES:
            for name in catalog.names(family):
                assert catalog.about(family, name), (family, name)
        print([name for name in sys.modules if name.partition(".")[0] in ("torch", "numpy", "dynaxx")])
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    loaded = {"dynaxx", "dynaxx._version", "dynaxx.errors", "dynaxx.catalog"}
    assert set(eval(shown.stdout)) == loaded | {f"dynaxx.catalog.{name}" for name in ("_choice", "_families", "_task")}  # noqa: S307


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in catalog.FAMILIES for name in catalog.names(family)]
)
def test_every_built_in_entry_is_one_class(family, name):
    kind = catalog.get(family, name)
    assert kind.__module__.startswith(catalog.FAMILIES[family].package)
    assert kind.__module__.rpartition(".")[2] == name.replace("-", "_")


def test_about_is_the_first_line_of_the_file():
    assert catalog.about("tasks", "stdlib-lm").startswith("A byte-level transformer language model")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"No task is named 'digit'\. Did you mean 'digits'\?.*stdlib-lm"):
        catalog.get("tasks", "digit")
    with pytest.raises(UnknownName, match=r"No action is named 'stopp'\. Did you mean 'stop'"):
        catalog.about("actions", "stopp")
    with pytest.raises(UnknownName, match=r"No family is named 'task'\. Did you mean 'tasks'"):
        catalog.names("task")
    with pytest.raises(UnknownName):
        catalog.get("tasks", "_batches")


TASK = """
from dynaxx.core.task import Task
from dynaxx.tasks.digits import Digits

class _Base(Digits):
    pass
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Installs a distribution with entries of dynaxx.tasks, given as {name: source}."""

    def install(**sources):
        folder = tmp_path / "foreign_tasks"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        entries = "[dynaxx.tasks]\n"
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
            entries += f"{name} = foreign_tasks.{name}\n"
        info = tmp_path / "foreign-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
        monkeypatch.syspath_prepend(tmp_path)

    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if name.startswith("foreign_tasks"):
            del sys.modules[name]


def test_a_plug_in_joins_its_family(plug_in):
    plug_in(other_digits='"""Digits, elsewhere.\n\nMore."""\n' + TASK + "class Other(Digits): steps = 3\n")
    assert catalog.names("tasks") == ["diabetes", "digits", "other-digits", "stdlib-lm"]
    assert catalog.about("tasks", "other-digits") == "Digits, elsewhere."
    assert "foreign_tasks" not in sys.modules
    assert catalog.get("tasks", "other_digits").steps == 3
    assert catalog.task("other-digits", "small").size == "small"


def test_a_plug_in_that_is_gone_has_left_its_family(plug_in, monkeypatch):
    plug_in(other=TASK + "class Other(Digits): steps = 3\n")
    assert "other" in catalog.names("tasks")
    monkeypatch.undo()
    assert catalog.names("tasks") == ["diabetes", "digits", "stdlib-lm"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TASK, r"foreign_tasks\.odd must define exactly one public class of Task\. It defines none"),
        (TASK + "class A(Digits): ...\nclass B(Digits): ...\n", r"It defines A, B\."),
        ("import nowhere_at_all", r"cannot be imported: ModuleNotFoundError.*nowhere_at_all"),
    ],
)
def test_a_plug_in_that_breaks_the_rule_is_named(plug_in, source, message):
    plug_in(odd=source)
    assert "odd" in catalog.names("tasks")
    with pytest.raises(BadInput, match=rf"The plug-in 'odd' \(foreign_tasks\.odd\) of the package foreign.*{message}"):
        catalog.get("tasks", "odd")


def test_a_plug_in_does_not_replace_a_built_in_entry(plug_in):
    plug_in(digits=TASK + "class Other(Digits): ...\n")
    with pytest.warns(DynaxxWarning, match=r"'digits' \(foreign_tasks\.digits\).*left out.*Rename its entry point"):
        assert catalog.names("tasks") == ["diabetes", "digits", "stdlib-lm"]
    assert catalog.get("tasks", "digits").__module__ == "dynaxx.tasks.digits"


def test_a_plug_in_without_a_module_has_no_description(plug_in, tmp_path):
    plug_in(gone="")
    (tmp_path / "foreign_tasks" / "gone.py").unlink()
    assert catalog.about("tasks", "gone") == ""
    with pytest.raises(BadInput, match=r"cannot be imported: ModuleNotFoundError"):
        catalog.get("tasks", "gone")
