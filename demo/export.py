"""Copies the demo's base and adapters to a folder of one's own, as ordinary HF and PEFT folders."""

import shutil
from pathlib import Path

from demo import adapter_paths, base_path


def export(destination: Path) -> None:
    """Writes destination/base and destination/adapters/NAME.

    Raises FileExistsError, before anything is written, if one of them exists and is not an
    empty folder.
    """
    copies = {base_path(): destination / "base"}
    for name, folder in adapter_paths().items():
        copies[folder] = destination / "adapters" / name
    for target in copies.values():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{target} exists and is not empty; nothing was written")
    for source, target in copies.items():
        shutil.copytree(source, target, dirs_exist_ok=True)
