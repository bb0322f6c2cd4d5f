"""Probes of a point in parameter space: one file, one probe, one name everywhere."""
