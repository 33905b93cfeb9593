"""Without triton the engine is imported, and CUDA gets the plain-torch form."""

import subprocess
import sys


def test_triton_need_not_be_installed() -> None:
    code = (
        "import sys; sys.modules['triton'] = None  # as if it were not there\n"
        "import torch, server.engine.engine, server.kernels.triton as ours\n"
        "from server.kernels.backend import default_backend\n"
        "cuda = torch.device('cuda')\n"
        "print(ours.usable(cuda), default_backend(cuda, None, triton=ours.usable(cuda)).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "reference"], done.stderr
