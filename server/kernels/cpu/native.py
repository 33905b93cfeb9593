"""The native library: finds it, loads it, and declares its C interface (src/api.h).

Here: NativeKernels, load_native. Not here: tensors' meaning; every caller checks its own shapes.
The library is built when the package is installed and may be missing (no compiler, another
system): everything that uses it has a form in plain torch.
"""

import ctypes
import functools
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

LIBRARY = "_native*.so"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Element types that the kernels know, by their numbers there."""

SILU, GELU_TANH = 0, 1


class Segment(Structure):
    _fields_ = [("start", c_int64), ("count", c_int64), ("slot", c_int64), ("row", c_int64)]


class LoraMember(Structure):
    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("ranks", c_void_p),
        ("out", c_void_p),
        ("out_features", c_int64),
        ("out_stride", c_int64),
    ]


class Lora(Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("members", c_int32),
        ("segments", c_int64),
        ("in_features", c_int64),
        ("x_stride", c_int64),
        ("x", c_void_p),
        ("segment", POINTER(Segment)),
        ("member", POINTER(LoraMember)),
    ]


class Attention(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *(
            (name, c_int64)
            for name in "chunks heads kv_heads key_dim value_dim block_size table_stride "
            "q_token_stride q_head_stride window".split()
        ),
        ("scale", c_float),
        ("softcap", c_float),
        *(
            (name, c_void_p)
            for name in "q keys values tables query_starts contexts sinks out".split()
        ),
    ]


class KvWrite(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *(
            (name, c_int64)
            for name in "tokens kv_heads key_dim value_dim k_token_stride k_head_stride "
            "v_token_stride v_head_stride".split()
        ),
        *((name, c_void_p) for name in "k v keys values places".split()),
    ]


class Linear(Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
    ]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("eps", c_float), ("plus_one", c_int32)]


RunHook = CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64)
"""(context, x, x_stride, out, out_stride, rows)"""


class Hook(Structure):
    _fields_ = [("run", RunHook), ("context", c_void_p)]


class Segments(Structure):
    _fields_ = [("count", c_int64), ("first", POINTER(Segment))]


class LoraHook(Structure):
    _fields_ = [("job", Lora), ("columns", POINTER(c_int64)), ("step", POINTER(Segments))]


class Group(Structure):
    _fields_ = [("linear", Linear), ("hooks", c_int64), ("hook", POINTER(Hook))]


class Layer(Structure):
    _fields_ = [
        *((name, c_int32) for name in "dtype activation norm_whole_rows".split()),
        *((name, c_int64) for name in "heads kv_heads key_dim value_dim window".split()),
        ("scale", c_float),
        ("softcap", c_float),
        ("sinks", c_void_p),
        *(
            (name, Norm)
            for name in "before_attention query_norm key_norm after_attention before_mlp "
            "after_mlp".split()
        ),
        *((name, Group) for name in "qkv o gate_up down".split()),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Step(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("rotary", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("places", c_void_p),
        ("attention", Attention),
    ]


class NativeKernels(Structure):
    """One instruction set's functions; they release the GIL while they run."""

    _fields_ = [
        ("_name", c_char_p),
        ("lora_add", CFUNCTYPE(None, POINTER(Lora))),
        ("paged_attention", CFUNCTYPE(None, POINTER(Attention))),
        ("kv_write", CFUNCTYPE(None, POINTER(KvWrite))),
        (  # dtype, x, weight, out, rows, width, eps, plus_one
            "rms_norm",
            CFUNCTYPE(
                None, c_int32, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int32
            ),
        ),
        (  # dtype, activation, gate, up, out, rows, width, gate_stride, up_stride
            "gated",
            CFUNCTYPE(
                None,
                *(c_int32, c_int32, c_void_p, c_void_p, c_void_p),
                *(c_int64, c_int64, c_int64, c_int64),
            ),
        ),
        # dtype, out, in
        ("packed_numbers", CFUNCTYPE(c_int64, c_int32, c_int64, c_int64)),
        # dtype, weight, packed, out, in
        ("pack", CFUNCTYPE(None, c_int32, c_void_p, c_void_p, c_int64, c_int64)),
        (  # dtype, weight, packed, scales, out, in
            "quantize",
            CFUNCTYPE(None, c_int32, c_void_p, c_void_p, c_void_p, c_int64, c_int64),
        ),
        (  # linear, x, x_stride, out, out_stride, rows
            "linear",
            CFUNCTYPE(None, POINTER(Linear), c_void_p, c_int64, c_void_p, c_int64, c_int64),
        ),
        ("panel", c_int64),
        ("lora_hook", RunHook),
        ("layer", CFUNCTYPE(None, POINTER(Layer), POINTER(Step), c_void_p)),
    ]
    lora_add: Any
    paged_attention: Any
    kv_write: Any
    rms_norm: Any
    gated: Any
    packed_numbers: Any
    pack: Any
    quantize: Any
    linear: Any
    panel: int
    lora_hook: Any
    layer: Any

    @property
    def name(self) -> str:
        """The instruction set: "avx512-bf16"."""
        return self._name.decode()


@functools.cache
def load_native() -> tuple[NativeKernels, ...]:
    """The kernels this processor can run, the fastest first; empty where there is no library."""
    found = sorted(Path(__file__).parent.glob(LIBRARY))
    if not found:
        return ()
    _share_openmp()
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError:  # built for another system, or no OpenMP here
        return ()
    library.ad_kernels_at.restype = POINTER(NativeKernels)
    library.ad_kernels_at.argtypes = [c_int32]
    kernels = []
    while pointer := library.ad_kernels_at(len(kernels)):
        kernels.append(pointer.contents)
    return tuple(kernels)


def _share_openmp() -> None:
    """Makes torch's OpenMP runtime visible to the library, which is linked to none.

    Two runtimes would be two pools of threads that spin on the same cores.
    """
    maps = Path("/proc/self/maps")
    if maps.exists():
        for line in maps.read_text().splitlines():
            path = line.rpartition(" ")[2]
            if Path(path).name.startswith("libgomp"):
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                return
