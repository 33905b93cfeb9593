import torch

from adapters_store.content import AdapterContent, BaseModel
from adapters_store.errors import AdapterNotFound
from server.adapters.residency import Residency
from server.adapters.slot_rows import SlotLimits


class ThreadsSource:
    """Notes how many threads torch would use where it is read; has no adapter."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def read(self, digest: str) -> AdapterContent:
        self.threads.append(torch.get_num_threads())
        raise AdapterNotFound(f"No adapter has the digest {digest}.")


def test_a_loader_starts_no_workers_that_would_compete_with_the_steps() -> None:
    source = ThreadsSource()
    base = BaseModel("base", "0" * 64, "LlamaForCausalLM", {})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    limits = SlotLimits(slots=1, rows=8, row_bytes=1)
    residency = Residency(source, base, {}, limits=limits, dtype=torch.float32, host_cache_bytes=1)
    try:
        residency.request("a" * 64)
        residency.wait(10)
        assert set(residency.collect()) == {"a" * 64}
        assert source.threads == [1]
        assert torch.get_num_threads() == 2  # here, as before
    finally:
        residency.close()
        torch.set_num_threads(before)
