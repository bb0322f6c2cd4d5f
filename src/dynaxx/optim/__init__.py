"""Optimizers: one file, one method, each a `torch.optim.Optimizer` that can be made for a model."""

from dynaxx.optim._joint import Joint
from dynaxx.optim._layer_decay import layer_decay
from dynaxx.optim._outer_nesterov import OuterNesterov
from dynaxx.optim.adamw import AdamW
from dynaxx.optim.kfac import KFAC
from dynaxx.optim.kl_shampoo import KLShampoo
from dynaxx.optim.lamb import Lamb
from dynaxx.optim.lars import Lars
from dynaxx.optim.muon import Muon
from dynaxx.optim.sgd import SGD
from dynaxx.optim.shampoo import Shampoo
from dynaxx.optim.soap import SOAP

__all__ = [
    "KFAC",
    "SGD",
    "SOAP",
    "AdamW",
    "Joint",
    "KLShampoo",
    "Lamb",
    "Lars",
    "Muon",
    "OuterNesterov",
    "Shampoo",
    "layer_decay",
]
