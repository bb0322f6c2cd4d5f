"""Probes of a point in parameter space: one file, one probe, one name everywhere; each a plain function too."""

from dynaxx.landscape._common import as_function
from dynaxx.landscape.connectivity import Connectivity
from dynaxx.landscape.critical_points import CriticalPoints
from dynaxx.landscape.flatness import Flatness
from dynaxx.landscape.gradient_noise import GradientNoise
from dynaxx.landscape.lr_range import LrRange
from dynaxx.landscape.slices import Slices
from dynaxx.landscape.spectrum import Spectrum
from dynaxx.landscape.tangent_kernel import TangentKernelProbe
from dynaxx.landscape.trajectory_map import TrajectoryMap

connectivity = as_function(Connectivity)
critical_points = as_function(CriticalPoints)
flatness = as_function(Flatness)
gradient_noise = as_function(GradientNoise)
lr_range = as_function(LrRange)
slices = as_function(Slices)
spectrum = as_function(Spectrum)
tangent_kernel = as_function(TangentKernelProbe)
trajectory_map = as_function(TrajectoryMap)

__all__ = [
    "connectivity",
    "critical_points",
    "flatness",
    "gradient_noise",
    "lr_range",
    "slices",
    "spectrum",
    "tangent_kernel",
    "trajectory_map",
]
