"""A SLURM cluster, through submitit: a few jobs, each of which trains its share of the members one by one."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaxx.errors import BadInput
from dynaxx.survey.engines._engine import TICK, Ended, Engine, Job, work
from dynaxx.survey.results import read_result

MINUTES = 240
"""Time limit of a job unless `timeout_min` says otherwise; what is cut off goes on in the next round."""


class Slurm(Engine):
    """Members packed into SLURM jobs: a job each would wait longer in the queue than it trains.

    A job that is preempted is queued again and goes on from its members' checkpoints. The machines share the fleet's
    folder, the task's file and the Python environment.

    Args:
        folder: Where submitit keeps its scripts and logs, shared by all machines.
        jobs: How many SLURM jobs at most.
        cluster: "slurm", or "local" for processes of this machine, for trying out; None: whichever is there.
        parameters: submitit's parameters: `slurm_partition`, `cpus_per_task`, `gpus_per_node`, `timeout_min`, ….

    Raises:
        BadInput: submitit is not installed, or a number is below 1.
    """

    def __init__(self, folder: str | Path, *, jobs: int = 8, cluster: str | None = None, **parameters: Any) -> None:
        if jobs < 1:
            raise BadInput(f"Slurm(jobs=...) must be at least 1. Got {jobs}.")
        try:
            import submitit
        except ImportError:
            raise BadInput("The engine Slurm needs submitit. Install it: pip install 'dynaxx[slurm]'") from None
        self._jobs = jobs
        self._executor: Any = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        self._executor.update_parameters(**{"timeout_min": MINUTES, "name": "dynaxx", **parameters})

    def run(self, jobs: Sequence[Job]) -> Generator[Ended | None]:
        """Do the jobs."""
        packs = [list(jobs[i :: self._jobs]) for i in range(min(self._jobs, len(jobs)))]
        with self._executor.batch():  # one array
            submitted = [self._executor.submit(_Pack(pack)) for pack in packs]
        open_packs = list(zip(submitted, packs, strict=True))
        try:
            while open_packs:
                for entry in list(open_packs):
                    slurm_job, pack = entry
                    done = slurm_job.done()  # before the results are read: they are complete then
                    for job in [job for job in pack if read_result(Path(job.folder)) is not None]:
                        pack.remove(job)
                        yield Ended(job=job, status="done")
                    if done:
                        open_packs.remove(entry)
                        yield from _rest(slurm_job, pack)
                yield None
                time.sleep(TICK)
        finally:
            for slurm_job, _ in open_packs:
                slurm_job.cancel(check=False)


class _Pack:
    """Several members, one after another, in one SLURM job."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def __call__(self) -> Mapping[str, Ended]:
        return {job.folder: work(job) for job in self.jobs if read_result(Path(job.folder)) is None}

    def checkpoint(self) -> Any:
        """What submitit queues again when the job is preempted: members that are done are passed over."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _rest(slurm_job: Any, pack: Sequence[Job]) -> Iterator[Ended]:
    """How the members without a result ended."""
    if not pack:
        return
    error = slurm_job.exception()
    said: Mapping[str, Ended] = {} if error is not None else slurm_job.result()
    why = "" if error is None else str(error).strip().splitlines()[-1]
    for job in pack:
        yield said.get(job.folder) or Ended(job=job, status="lost", why=f"its SLURM job ended: {why}")
