"""`trainer_state.json` of Hugging Face's Trainer, or the folder of a checkpoint that holds one."""

import json
from pathlib import Path
from typing import Any

from dynaxx.errors import BadInput
from dynaxx.readers._reader import Reader
from dynaxx.readers._rows import table
from dynaxx.runlog import Table

NAME = "trainer_state.json"


class TrainerStateReader(Reader):
    """The log history of a Trainer; planned steps and batch size join the manifest."""

    def recognises(self, path: Path) -> bool:
        """By the file's name, or a folder that holds it."""
        return path.name == NAME if path.is_file() else bool(_newest(path))

    def read(self, path: Path) -> Table:
        """Read it; of a training folder with several checkpoints the one of the greatest step."""
        file = path if path.is_file() else _newest(path)
        if file is None:
            raise BadInput(f"{path}: there is no {NAME} in it.")
        try:
            state: Any = json.loads(file.read_text(encoding="utf-8"))
            history = state["log_history"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{file}: this is no state of a Trainer ({error!r}). It must hold log_history.") from None
        log = table(history, str(file))
        planned = state.get("max_steps")
        facts = {**log.manifest["facts"], "batch_size": state.get("train_batch_size")}
        log.manifest = {"steps": planned if isinstance(planned, int) and planned > 0 else None, "facts": facts}
        return log


def _newest(folder: Path) -> Path | None:
    found = [folder / NAME, *folder.glob(f"checkpoint-*/{NAME}")]
    found = [file for file in found if file.is_file()]
    return max(found, key=_step, default=None)


def _step(file: Path) -> int:
    number = file.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
