"""Probes of a point in parameter space: one file, one probe, one name everywhere; each a plain function too."""

from dynaxx.landscape.critical_points import critical_points
from dynaxx.landscape.flatness import flatness
from dynaxx.landscape.spectrum import spectrum
from dynaxx.landscape.tangent_kernel import tangent_kernel

__all__ = ["critical_points", "flatness", "spectrum", "tangent_kernel"]
