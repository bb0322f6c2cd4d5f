"""Averages of weights along a run: one file, one rule."""
