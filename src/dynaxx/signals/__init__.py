"""Measurements of a live run: one file, one signal, one name everywhere."""
