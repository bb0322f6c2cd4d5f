"""A task by its name, or out of a file of the user's: "stdlib-lm", "path/file.py:Class"."""

import difflib
import hashlib
import inspect
import sys
import traceback
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dynaxx.catalog._families import contract, defined, get, names
from dynaxx.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from dynaxx.core.task import Task


def task(spec: str, size: str | None = None) -> "Task":
    """Construct a task.

    A file is loaded once a process, as an import is: its folder joins the end of the module search path, and its
    module takes the file's name where that is free, so that data-loader processes find what it defines.

    Args:
        spec: A built-in task or a plug-in ("digits"), "path/file.py:Class", or "path/file.py" with one task in it.
        size: One of the task's sizes; None for its default.

    Returns:
        The task.

    Raises:
        UnknownName: There is no such built-in task, or no such class in the file.
        BadInput: There is no such file; it raises when it is loaded; the class is not a Task, is not complete, raises
            when it is constructed, or has no such size.
    """
    if not _names_a_file(spec):
        return _construct(get("tasks", spec), size)
    place, _, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    path = _existing(spec, Path(place or name))
    try:
        module = _load(path)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{path} cannot be loaded: {_where(error, path)}.") from error
    kind = _choose(module, name, path)
    try:
        return _construct(kind, size)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{kind.__name__} of {path} cannot be constructed: {_where(error, path)}.") from error


def _names_a_file(spec: str) -> bool:
    if any(mark in spec for mark in (".py", "/", "\\", ":")):
        return True
    # A name of our own stays one beside a file of that name.
    return spec.replace("_", "-") not in names("tasks") and Path(f"{spec}.py").is_file()


def _existing(spec: str, path: Path) -> Path:
    if path.is_file():
        return path.resolve()
    if not path.parent.is_dir():
        raise BadInput(f"Task {spec!r}: there is no folder {str(path.parent)!r}. Check the path.")
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], cutoff=0.5)
    hint = f"Did you mean {' or '.join(repr(str(path.with_name(n))) for n in near)}?" if near else "Check the path."
    raise BadInput(f"Task {spec!r}: there is no file {str(path)!r}. {hint}")


def _load(path: Path) -> ModuleType:
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    """The file's stem where that imports nothing else, or the stem and a hash of the path."""
    if path.stem.isidentifier() and path.stem != "__main__":
        taken = find_spec(path.stem)
        if taken is None or taken.origin == str(path):
            return path.stem
    return f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def _choose(module: ModuleType, name: str, path: Path) -> type[Any]:
    base = contract("tasks")
    tasks = {each.__name__: each for each in defined(module, base)}
    if name:
        if name not in vars(module):
            raise UnknownName(f"Task in {path}", name, tasks)
        kind = vars(module)[name]
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise BadInput(f"{name} of {path} must be a subclass of dynaxx.Task. Got {kind!r}.")
    else:
        complete = [each for each in tasks.values() if not inspect.isabstract(each)] or list(tasks.values())
        if len(complete) != 1:
            rule = f"{path} must define exactly one Task, or be named with its class: {path.name}:MyTask"
            raise BadInput(f"{rule}. It defines {', '.join(each.__name__ for each in complete) or 'none'}.")
        kind = complete[0]
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise BadInput(f"{kind.__name__} of {path} must define every method of a Task. Missing: {missing}.")
    return kind


def _construct(kind: type[Any], size: str | None) -> "Task":
    return kind() if size is None else kind(size=size)


def _where(error: BaseException, path: Path) -> str:
    """The error in one line, with the last line of the user's file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    place = [f"line {line}" for line in lines[-1:] if line]
    text = [line for line in str(error).strip().splitlines()[:1] if line]
    return ": ".join([*place, type(error).__name__, *text])
