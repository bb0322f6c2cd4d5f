"""The only writer of a live run: one action per file, each change with a receipt."""

from dynaxx.actuator._actuator import Actuator
from dynaxx.actuator._rates import RatesInForce

__all__ = ["Actuator", "RatesInForce"]
