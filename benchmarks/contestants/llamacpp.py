"""llama.cpp, through its C interface in llama-cpp-python: one context, sequences batched in it.

A context applies one set of adapters to all of a batch, so sequences are run in groups of the same
adapter, one group after another; the base, or one adapter, is one group. Converting to GGUF,
loading and a warm-up are outside the clock.
"""

# pyright: reportMissingImports=false
# It is installed in an environment of its own only (venvs.py).

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from benchmarks.contestants.job import Job, Measurement
from benchmarks.workload import Workload

BATCH = 2048  # tokens of one call
GGUF = {"bfloat16": "bf16", "float32": "f32"}
# W1's base has no tokenizer, for which the converter has no option.
CONVERT_BASE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from conversion.llama import LlamaModel
LlamaModel.set_vocab = LlamaModel._set_vocab_none
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def measure(job: Job) -> Measurement:
    """Warms up with a few tokens of every adapter, then measures."""
    workload = job.workload()
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(str(_base(job, workload)).encode(), options)
    adapters = {
        name: lib.llama_adapter_lora_init(model, str(path).encode())
        for name, path in _adapters(job, workload).items()
    }
    assert model and all(adapters.values()), "llama.cpp could not load the converted files"
    groups = {
        name: [number for number, other in enumerate(workload.names) if other == name]
        for name in dict.fromkeys(workload.names)
    }
    context = _context(model, job, max(map(len, groups.values())))
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    run = _Run(context, vocab, adapters, groups)
    run.generate([prompt[:8] for prompt in workload.prompts], 3)
    return run.generate(workload.prompts, job.new_tokens)


def _context(model: Any, job: Job, sequences: int) -> Any:
    """Large enough for one group; in float32 the cache is too, so that tokens can be compared."""
    options = lib.llama_context_default_params()
    length = -(-(job.prompt_tokens + job.new_tokens) // 256) * 256
    options.n_ctx = sequences * length
    options.n_seq_max = sequences
    options.n_batch = BATCH
    options.n_threads = options.n_threads_batch = job.threads
    options.no_perf = True
    if job.dtype == "float32":
        options.type_k = options.type_v = lib.GGML_TYPE_F32
    context = lib.llama_init_from_model(model, options)
    assert context, "llama.cpp made no context"
    return context


class _Run:
    """Generates group by group in one context, which is emptied before each."""

    def __init__(
        self,
        context: Any,
        vocab: int,
        adapters: dict[str, Any],
        groups: dict[str | None, list[int]],
    ) -> None:
        self._context, self._vocab = context, vocab
        self._adapters, self._groups = adapters, groups
        self._batch = lib.llama_batch_init(BATCH, 0, 1)

    def generate(self, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> Measurement:
        tokens: list[list[int]] = [[] for _ in prompts]
        prefill_s = 0.0
        start = time.perf_counter()
        for name, numbers in self._groups.items():
            group_start = time.perf_counter()
            self._use(name)
            answers = self._prefill([prompts[number] for number in numbers])
            prefill_s += time.perf_counter() - group_start
            length = len(prompts[numbers[0]])
            for position in range(length, length + new_tokens):
                for number, answer in zip(numbers, answers, strict=True):
                    tokens[number].append(answer)
                if position < length + new_tokens - 1:
                    rows = [(answer, position, at, True) for at, answer in enumerate(answers)]
                    answers = self._decode(rows)
        return Measurement(
            tokens=tuple(map(tuple, tokens)),
            prefill_s=prefill_s,
            total_s=time.perf_counter() - start,
            decode_steps=new_tokens - 1,
        )

    def _use(self, name: str | None) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        used = [] if name is None else [self._adapters[name]]
        pointers = (lib.llama_adapter_lora_p_ctypes * 1)(*used)
        scales = (lib.ctypes.c_float * 1)(1.0)  # alpha / rank is in the file
        failed = lib.llama_set_adapters_lora(self._context, pointers, len(used), scales)
        assert not failed, "llama.cpp did not take the adapter"

    def _prefill(self, prompts: list[tuple[int, ...]]) -> list[int]:
        """The first token of each."""
        rows = [
            (token, position, at, position == len(prompt) - 1)
            for at, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        chunks = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
        return [token for chunk in chunks for token in self._decode(chunk)]

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Rows are token, position, sequence, and whether its next token is wanted, given here."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at] = token
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = wanted
        failed = lib.llama_decode(self._context, batch)
        assert not failed, f"llama_decode gave {failed}"
        return [self._best(at) for at, row in enumerate(rows) if row[3]]

    def _best(self, at: int) -> int:
        logits = lib.llama_get_logits_ith(self._context, at)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())


def _base(job: Job, workload: Workload) -> Path:
    """The base as GGUF, made once."""
    path = _folder(job) / "base.gguf"
    if not path.exists():
        _convert(["-c", CONVERT_BASE, str(_source()), str(workload.base)], path, job)
    return path


def _adapters(job: Job, workload: Workload) -> dict[str, Path]:
    """The adapters as GGUF, each made once."""
    paths = {name: _folder(job) / f"{name}.gguf" for name in workload.adapters}
    program = _source() / "convert_lora_to_gguf.py"
    for name, path in paths.items():
        if not path.exists():
            adapter = str(workload.adapters[name])
            _convert([str(program), "--base", str(workload.base), adapter], path, job)
    return paths


def _convert(program: list[str], path: Path, job: Job) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.stem}.half.gguf")
    options = ["--outtype", GGUF[job.dtype], "--outfile", str(half)]
    subprocess.run([sys.executable, *program, *options], stdout=sys.stderr, check=True)
    half.rename(path)


def _folder(job: Job) -> Path:
    return Path(job.work) / "gguf" / GGUF[job.dtype]


def _source() -> Path:
    """llama.cpp's own source with its converters, which the environment's script leaves there."""
    return Path(sys.prefix) / "llama.cpp"
