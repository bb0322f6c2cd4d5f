"""One HTML file that needs nothing else: page, bundle, data, and a picture for browsers without scripts."""

import base64
import hashlib
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from dynaxx import figures
from dynaxx.errors import NotApplicable
from dynaxx.report._payload import to_json
from dynaxx.runlog import RunView

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def page(content: Mapping[str, Any], arrays: bytes, pictures: Sequence[str]) -> str:
    """The report as HTML.

    Only the bundle may run, by its hash; nothing may be loaded from anywhere.

    Args:
        content: The JSON-able part of the payload.
        arrays: The compressed arrays.
        pictures: HTML for browsers without scripts, one for each run of the content.

    Returns:
        The page.
    """
    script = static("bundle.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    slots = {
        "policy": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape("Dynaxx: " + ", ".join(run["name"] for run in content["runs"])),
        "style": static("bundle.css"),
        "payload": to_json(content),
        "arrays": base64.b64encode(arrays).decode(),
        "script": script,
        "plain": "\n".join(_plain(run, picture) for run, picture in zip(content["runs"], pictures, strict=True)),
    }
    return _SLOT.sub(lambda slot: slots[slot[1]], static("page.html"))


def static(name: str) -> str:
    """A file that ships with the package.

    Args:
        name: Its name in `static`.

    Returns:
        Its text.
    """
    return (files("dynaxx.report") / "static" / name).read_text(encoding="utf-8")


def _plain(run: Mapping[str, Any], picture: str) -> str:
    facts = "".join(
        f"<dt>{html.escape(fact['label'])}</dt><dd>{html.escape(fact['value'])} {html.escape(fact['detail'])}</dd>"
        for fact in run["summary"]
    )
    return f"<h2>{html.escape(run['name'])}</h2><dl>{facts}</dl>{picture}"


def drawn(view: RunView) -> str:
    """A run's loss as a picture that needs no script.

    Args:
        view: The run.

    Returns:
        SVG, or the reason why there is none.
    """
    try:
        picture = figures.draw(view, "loss")
    except NotApplicable as reason:
        return f"<p>{html.escape(str(reason))}</p>"
    import matplotlib as mpl

    buffer = io.StringIO()
    nameless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # The browser draws the text, with its own fonts: a glyph that matplotlib's font lacks is no loss.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dynaxx"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        picture.savefig(buffer, format="svg", metadata=nameless)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
