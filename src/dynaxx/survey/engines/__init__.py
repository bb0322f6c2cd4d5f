"""Where the members of a fleet are trained: processes of this machine, a Ray cluster, a SLURM cluster."""

from dynaxx.survey.engines._engine import Ended, Engine, Job
from dynaxx.survey.engines.processes import Processes
from dynaxx.survey.engines.ray import Ray
from dynaxx.survey.engines.slurm import Slurm

__all__ = ["Ended", "Engine", "Job", "Processes", "Ray", "Slurm"]
