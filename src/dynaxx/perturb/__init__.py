"""Changes of weights or gradients within one step, and pulls after it: one file, one method."""

from dynaxx.perturb._fisher import fisher_diagonal
from dynaxx.perturb.annealed_noise import AnnealedNoise
from dynaxx.perturb.distance_to_start import DistanceToStart
from dynaxx.perturb.ewc import Ewc
from dynaxx.perturb.sam import Sam
from dynaxx.perturb.targeted_dropout import TargetedDropout
from dynaxx.perturb.weight_noise import WeightNoise

__all__ = ["AnnealedNoise", "DistanceToStart", "Ewc", "Sam", "TargetedDropout", "WeightNoise", "fisher_diagonal"]
