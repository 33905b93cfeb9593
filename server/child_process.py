"""How one of our modules is started as a process of its own.

Here: what every start has in common. Not here: what is said to the process afterwards.
"""

import os
import sys
from pathlib import Path


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` under this interpreter."""
    # -P: a folder called server/ where one stands is not ours
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(**defaults: str) -> dict[str, str]:
    """This process's environment over `defaults`, with this very package found first."""
    ours = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    return defaults | os.environ | {"PYTHONPATH": path}
