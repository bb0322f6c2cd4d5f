"""The report: one self-contained HTML file per run, for several runs side by side, for a map or the rescue suite."""

from dynaxx.report._write import write_map, write_report, write_rescue

__all__ = ["write_map", "write_report", "write_rescue"]
