"""Where a base model's files are, and what they are: the folder and its digest."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapters_store.errors import EngineStartFailed

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched from a hub: no pickled weights, no code."""


def resolve_model(model: str) -> Path:
    """The folder of `model`: a folder itself, or a Hugging Face hub id, fetched if need be.

    Raises EngineStartFailed, saying what is missing.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EngineStartFailed(
                f"{folder} has no config.json; --model takes a folder written by transformers' "
                "save_pretrained, or a Hugging Face hub id"
            )
        return folder.resolve()
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise EngineStartFailed(f"--model {model}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EngineStartFailed(
            f"--model {model}: no such folder here, and the hub did not give it: {error}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The base's weights, by name. Raises EngineStartFailed if there are no safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineStartFailed(
            f"{folder} has no *.safetensors weights; pickled weights are never read here: save "
            "the model again with save_pretrained(safe_serialization=True)"
        )
    return files


def digest_files(folder: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """sha256 over config.json and the weight files, by name; the files are read in threads.

    `progress` is called with bytes done and in all. Raises EngineStartFailed as `weight_files`.
    """
    files = weight_files(folder)
    files.append(folder / "config.json")
    total = sum(file.stat().st_size for file in files)
    done = 0
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(4) as threads:
        for file, digest in zip(files, threads.map(_digest, files), strict=True):
            digests[file.name] = digest
            done += file.stat().st_size
            if progress is not None:
                progress(done, total)
    canonical = json.dumps(digests, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
