"""The report: one self-contained HTML file per run, or for several runs side by side."""

from dynaxx.report._write import write_report

__all__ = ["write_report"]
