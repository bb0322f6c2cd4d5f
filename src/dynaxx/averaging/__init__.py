"""Averages of weights along a run: one file, one rule."""

from dynaxx.averaging._batch_norm import recompute_batch_norm
from dynaxx.averaging._models import average_models
from dynaxx.averaging.cyclic import Cyclic
from dynaxx.averaging.ema import Ema
from dynaxx.averaging.latest import Latest
from dynaxx.averaging.swa import Swa

__all__ = ["Cyclic", "Ema", "Latest", "Swa", "average_models", "recompute_batch_norm"]
