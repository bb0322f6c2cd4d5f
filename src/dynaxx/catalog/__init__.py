"""Finds an entry of a family by its file's name: the built-in ones, plug-ins, and tasks in files of the user's."""

from dynaxx.catalog._choice import Choice, choice, options, read_words
from dynaxx.catalog._families import FAMILIES, Family, about, get, names
from dynaxx.catalog._task import task

__all__ = ["FAMILIES", "Choice", "Family", "about", "choice", "get", "names", "options", "read_words", "task"]
