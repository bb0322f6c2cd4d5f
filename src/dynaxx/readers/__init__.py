"""Logs of other tools, read as a log of ours: one file per format."""
