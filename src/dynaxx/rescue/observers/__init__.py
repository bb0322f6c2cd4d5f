"""Observers by name: Dynaxx, nobody, and the peers whose rules are published."""

from collections.abc import Mapping

from dynaxx.rescue.observer import Observer
from dynaxx.rescue.observers.auto_trainer import AutoTrainer
from dynaxx.rescue.observers.deep_checker import DeepChecker
from dynaxx.rescue.observers.dynaxx import Dynaxx
from dynaxx.rescue.observers.foundry import Foundry
from dynaxx.rescue.observers.lightning import Lightning
from dynaxx.rescue.observers.olmo import Olmo
from dynaxx.rescue.observers.sagemaker import SageMaker
from dynaxx.rescue.observers.silent import Silent
from dynaxx.rescue.observers.torchmortem import Torchmortem
from dynaxx.rescue.observers.training_doctor import TrainingDoctor
from dynaxx.rescue.observers.zclip import ZClip

OBSERVERS: Mapping[str, type[Observer]] = {
    "dynaxx": Dynaxx,
    "sagemaker": SageMaker,
    "deep_checker": DeepChecker,
    "auto_trainer": AutoTrainer,
    "training_doctor": TrainingDoctor,
    "torchmortem": Torchmortem,
    "lightning": Lightning,
    "olmo": Olmo,
    "zclip": ZClip,
    "foundry": Foundry,
    "silent": Silent,
}
