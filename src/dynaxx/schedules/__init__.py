"""Learning rates at three scales: macro curves of the step, factors by layer (meso), a periodic modulation (micro)."""

from dynaxx.schedules._meso import Meso
from dynaxx.schedules._micro import Micro
from dynaxx.schedules._rates import Rates
from dynaxx.schedules._scheduler import as_scheduler
from dynaxx.schedules.constant import Constant
from dynaxx.schedules.cosine import Cosine
from dynaxx.schedules.inverse_sqrt import InverseSqrt
from dynaxx.schedules.linear_decay import LinearDecay
from dynaxx.schedules.one_cycle import OneCycle
from dynaxx.schedules.power_decay import PowerDecay
from dynaxx.schedules.warm_restarts import WarmRestarts
from dynaxx.schedules.wsd import WarmupStableDecay

__all__ = [
    "Constant",
    "Cosine",
    "InverseSqrt",
    "LinearDecay",
    "Meso",
    "Micro",
    "OneCycle",
    "PowerDecay",
    "Rates",
    "WarmRestarts",
    "WarmupStableDecay",
    "as_scheduler",
]
