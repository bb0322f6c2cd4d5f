"""A Ray cluster: one task per member; a worker or a machine that is lost costs one attempt of its members."""

import signal
import socket
import threading
from collections.abc import Generator, Sequence
from importlib import import_module
from typing import Any

from dynaxx.errors import BadInput
from dynaxx.survey.engines._engine import TICK, Ended, Engine, Job, work

ANSWER = 10.0
"""Seconds that the head of a cluster has to take a connection; Ray itself tries for minutes."""


class Ray(Engine):
    """Members as tasks of a Ray cluster, whose machines share the fleet's folder and the task's file.

    Args:
        address: "local" begins a cluster of this machine alone; "auto" finds the running one; else its address.
        cpus: Cores that each member reserves.
        gpus: Accelerators that each member reserves; a part is shared.
        options: Further arguments of `ray.init`.

    Raises:
        BadInput: Ray is not installed, a number is out of its range, or there is no cluster at the address.
    """

    def __init__(self, address: str = "auto", *, cpus: float = 1, gpus: float = 0, **options: Any) -> None:
        if cpus <= 0 or gpus < 0:
            raise BadInput(f"Ray(cpus=..., gpus=...) must be above 0, and at least 0. Got {cpus} and {gpus}.")
        try:
            self._ray: Any = import_module("ray")  # it takes seconds, and types are checked without it too
        except ImportError:
            raise BadInput("The engine Ray needs the package ray. Install it: pip install 'dynaxx[ray]'") from None
        self._cpus, self._gpus = cpus, gpus
        self._address, self._options = address, options

    def run(self, jobs: Sequence[Job]) -> Generator[Ended | None]:
        """Do the jobs."""
        ray = self._ray
        begun = self._connect()
        # Retries are the fleet's: Ray's own would train a member again while its first attempt may still be alive.
        remote = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(work)
        under_way: dict[Any, Job] = {}
        try:
            under_way |= {remote.remote(job): job for job in jobs}
            while under_way:
                ready, _ = ray.wait(list(under_way), num_returns=len(under_way), timeout=TICK)
                for reference in ready:
                    yield self._ended(reference, under_way.pop(reference))
                yield None
        finally:
            for reference in under_way:
                ray.cancel(reference)  # as Ctrl-C in the worker: the step is completed and saved
            if under_way:
                ray.wait(list(under_way), num_returns=len(under_way), timeout=TICK)
            if begun:
                ray.shutdown()

    def _connect(self) -> bool:
        """Whether this engine made the connection, and is to end it."""
        if self._ray.is_initialized():
            return False
        usual = signal.getsignal(signal.SIGTERM)
        try:
            _answers(self._address)
            self._ray.init(address=self._address, log_to_driver=False, **self._options)
        except (OSError, ValueError) as error:
            raise BadInput(f"Ray(address={self._address!r}): no cluster answers there. {error}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, usual)  # Ray's own handler would exit with code 15
        return True

    def _ended(self, reference: Any, job: Job) -> Ended:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            return Ended(job=job, status="lost", why=f"{type(error).__name__}: {first}")


def _answers(address: str) -> None:
    """Raise `OSError` where an address with a port takes no connection."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
