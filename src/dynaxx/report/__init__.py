"""The report: one self-contained HTML file per run, for several runs side by side, or for a map."""

from dynaxx.report._write import write_map, write_report

__all__ = ["write_map", "write_report"]
