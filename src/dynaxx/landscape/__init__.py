"""Probes of a point in parameter space: one file, one probe, one name everywhere; each a plain function too."""

from dynaxx.landscape._common import as_function
from dynaxx.landscape.critical_points import CriticalPoints
from dynaxx.landscape.flatness import Flatness
from dynaxx.landscape.slices import Slices
from dynaxx.landscape.spectrum import Spectrum
from dynaxx.landscape.tangent_kernel import TangentKernelProbe

critical_points = as_function(CriticalPoints)
flatness = as_function(Flatness)
slices = as_function(Slices)
spectrum = as_function(Spectrum)
tangent_kernel = as_function(TangentKernelProbe)

__all__ = ["critical_points", "flatness", "slices", "spectrum", "tangent_kernel"]
