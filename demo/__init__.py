"""The embedded demo: a small base and its adapters, made from scratch by `python -m demo.make`.

Importing this package imports no torch.
"""

from pathlib import Path

# For each adapter, a user message that shows what it does.
EXAMPLES: dict[str, str] = {
    "intent": "Hello. Is it possible to get a refund on my Kestrel?",
    "clock": "The ship from Hamburg comes in at half past nine in the evening.",
    "dates": "Let us plan the workshop for the twenty-third of March 2031.",
    "formal": "hey pls can u send the contract asap",
    "orders-json": "Kindly dispatch forty-two Juniper to our friends in Kyoto.",
}


def artefacts() -> Path:
    """The folder that holds `base/` and `adapters/`."""
    return Path(__file__).parent / "artefacts"


def base_path() -> Path:
    """The base, an ordinary transformers folder."""
    return artefacts() / "base"


def adapter_paths() -> dict[str, Path]:
    """Each adapter's name and its ordinary PEFT folder."""
    return {name: artefacts() / "adapters" / name for name in EXAMPLES}
