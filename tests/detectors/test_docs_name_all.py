"""The page of the docs names every detector with its code, and every live check."""

from pathlib import Path

from dynaxx import catalog

PAGE = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")


def test_every_detector_and_check_is_named():
    for name in catalog.names("detectors"):
        kind = catalog.get("detectors", name)
        assert f"| {kind.code} | {name} | {kind.title} |" in PAGE, name
    for name in catalog.names("checks"):
        assert f"| {name} | {catalog.about('checks', name)} |" in PAGE, name
