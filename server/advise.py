"""Puts an advice together without a server or a store: `adapterd advise`.

Here: run. Not here: the advice (training/advisor), what the command prints of it.
"""

import sys
from pathlib import Path
from typing import Any

from server.config import Settings
from server.work import base_folder, prepare_training


def run(settings: Settings, data: Path, *, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The report on the examples of a file; its way is told on stderr.

    `options`: fields of training's Probing. Raises SettingsError, EngineStartFailed (no such
    base), InvalidDataset, OSError.
    """
    prepare_training(settings, log_level="error")
    from training.advisor.advice import advise
    from training.advisor.request import Probing

    with data.open("rb") as file:
        return advise(
            base_folder(settings),
            file,
            Probing.model_validate(options),
            seed=seed,
            listener=_Told(),
            field=data.name,
        )


class _Told:
    """Hears of an advice for a person who waits."""

    def on_step(self) -> None:
        """Nothing: there is nobody to hear of it, and Ctrl-C comes by itself."""

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


def files(report: dict[str, Any]) -> dict[str, bytes]:
    """The report's files by how their names end."""
    from training.advisor.advice import advice_files

    return advice_files(report)
