"""Policies from findings to acts: one file per policy; the arbiter chooses among what they propose."""
