"""Describes the machine that a result was measured on, without saying whose it is."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a figure depends on. `load` is the 1-minute load average when the run began."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    load: float

    def text(self) -> str:
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        return (
            f"{self.cpu}, {self.cores} cores ({', '.join(self.flags)}), {self.memory_gib} GiB, "
            f"{self.system}; Python {self.python}, {packages}; load average before the run "
            f"{self.load}"
        )


def describe() -> Machine:
    """This machine, from /proc; "unknown" where that is not there."""
    info = _cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=f"{info.get('model name', 'unknown')} (family {info.get('cpu family', '?')}, "
        f"model {info.get('model', '?')})",
        cores=len(os.sched_getaffinity(0)),
        flags=tuple(flag for flag in FLAGS if flag in flags),
        memory_gib=round(pages / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        load=round(os.getloadavg()[0], 2),
    )


def _cpu_info() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; {} where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
