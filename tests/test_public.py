"""The public face and the shape of the source: names, what an import loads, sizes, docstrings, one entry per file."""

import ast
import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import dynaxx
from dynaxx import catalog
from dynaxx.catalog._families import contract, defined

SOURCE = Path(dynaxx.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, MEDIAN_FILE, USUAL_FUNCTION = 400, 150, 40
"""Lines: of any file, of the median file, and of nine functions in ten (house style, budget of sizes)."""


def loaded_by(code):
    """The packages and modules of ours that a fresh interpreter has loaded after the code."""
    code += "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = json.loads(shown.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names}, {name for name in names if name.startswith("dynaxx")}


def test_exported_names_are_those_that_are_there():
    assert len(set(dynaxx.__all__)) == len(dynaxx.__all__)
    assert set(dynaxx.__all__) == {*dynaxx._HOME, "__version__"}
    assert dir(dynaxx) == sorted(dynaxx.__all__)
    for name in dynaxx.__all__:
        value = getattr(dynaxx, name)
        assert isinstance(value, str) or value.__doc__, name
        assert isinstance(value, str) or value.__name__ == name
    with pytest.raises(AttributeError, match="'dynaxx' has no attribute 'wach'"):
        _ = dynaxx.wach


def test_what_editors_are_told_is_what_is_there():
    """The imports under TYPE_CHECKING name the same homes as the table that is used at run time."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == dynaxx._HOME


def test_the_errors_are_reached_through_the_package():
    _, modules = loaded_by("import dynaxx; assert dynaxx.errors.BadInput is dynaxx.BadInput")
    assert modules == {"dynaxx", "dynaxx._version", "dynaxx.errors"}


def test_importing_the_package_loads_nothing_heavy():
    packages, modules = loaded_by("import dynaxx; dir(dynaxx); dynaxx.__version__")
    assert not packages & {"torch", "numpy", "pyarrow", "matplotlib", "click"}
    assert modules == {"dynaxx", "dynaxx._version"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["report", "--help"], ["list", "--help"], ["list"]]
)
def test_help_loads_neither_torch_nor_numpy(arguments):
    code = f"""
import runpy, sys
sys.argv = ["dynaxx", *{arguments!r}]
try:
    runpy.run_module("dynaxx", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
    packages, _ = loaded_by(code)
    assert "click" in packages
    assert not packages & {"torch", "numpy", "pyarrow", "matplotlib", "sklearn"}


def test_files_are_short():
    lines = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lines.items() if n > LONGEST_FILE} == {}
    assert statistics.median(lines.values()) <= MEDIAN_FILE


def test_functions_are_short():
    sizes = sorted(
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert sizes[len(sizes) * 9 // 10] <= USUAL_FUNCTION


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_in_one_sentence_what_lives_there(path):
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    assert len(first.split()) > 2, first
    assert first.endswith("."), first
    assert "from __future__" not in path.read_text()


@pytest.mark.parametrize("family", catalog.FAMILIES)
def test_a_file_of_a_family_is_one_entry(family):
    base = contract(family)
    folder = SOURCE.joinpath(*catalog.FAMILIES[family].package.split(".")[1:])
    stems = {path.stem for path in folder.glob("[!_]*.py")}
    assert {name.replace("-", "_") for name in catalog.names(family)} == stems
    for stem in stems:
        module = importlib.import_module(f"{catalog.FAMILIES[family].package}.{stem}")
        assert len(defined(module, base)) == 1, stem
