"""Phases of a training: one optimizer after another, averages and perturbations on and off, and what is handed over."""

from dynaxx.phases.phase import Phase
from dynaxx.phases.phased import Phased
from dynaxx.phases.switch import Switch, transport

__all__ = ["Phase", "Phased", "Switch", "transport"]
