"""What Dynaxx raises and warns, drawn as a tree.

```
Exception
└── DynaxxError                what a caller may catch to catch everything below
    ├── BadInput               a call, option, file or object that breaks a rule (command line: exit 2)
    │   ├── UnknownName        a name that no entry has; the nearest ones are offered
    │   └── RunFolderExists    a run would be written over another
    ├── NotApplicable          an outcome: this cannot be said here, and why
    ├── CorruptData            bytes on disk that do not match their checksum or their format
    └── NotSaved               the system would not let a checkpoint be written (an OSError too)

UserWarning
└── DynaxxWarning              training goes on, but something is not measured or not kept
```
"""

import difflib
from collections.abc import Iterable


class DynaxxError(Exception):
    """The root of every error that Dynaxx raises itself."""


class BadInput(DynaxxError, ValueError):
    """A call, option, file or object breaks a rule; the message names the call, the rule, the value and the remedy."""


class UnknownName(BadInput):
    """A name that no entry has.

    Args:
        kind: What was looked for, in the singular ("task").
        name: The name that was asked for.
        known: Every name that exists.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        there = ", ".join(names) if names else "none"
        super().__init__(f"No {kind} is named {name!r}.{hint} There are: {there}.")
        self.nearest = tuple(near)
        self._made_of = (kind, name, tuple(names))

    def __reduce__(self) -> tuple[type["UnknownName"], tuple[str, str, tuple[str, ...]]]:
        """So that it comes back whole from another process."""
        return type(self), self._made_of


class RunFolderExists(BadInput):
    """A run folder holds a run already; nothing is written over."""


class NotApplicable(DynaxxError):
    """A measurement or a probe cannot speak here; the message is the reason."""


class CorruptData(DynaxxError):
    """Bytes on disk do not match their checksum or their format; the message names the file and what is lost."""


class NotSaved(DynaxxError, OSError):
    """The system would not let a checkpoint be written; the earlier ones are as they were, nothing is left behind."""


class DynaxxWarning(UserWarning):
    """Training goes on, but something is not measured or not kept."""
