"""Checkpoints: the full state of a training, committed whole or not at all, and verified before it is used."""

from dynaxx.checkpoints.asynchronous import PendingSave
from dynaxx.checkpoints.codec import decode, encode
from dynaxx.checkpoints.fingerprint import fingerprint
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.retention import Policy
from dynaxx.checkpoints.state import ResumeLevel, capture, restore, resume_level
from dynaxx.checkpoints.store import CheckpointStore

__all__ = [
    "CheckpointInfo",
    "CheckpointStore",
    "PendingSave",
    "Policy",
    "ResumeLevel",
    "capture",
    "decode",
    "encode",
    "fingerprint",
    "restore",
    "resume_level",
]
