"""README.md as data: its fenced blocks, what each says it prints, and its table of settings."""

import re
from dataclasses import dataclass
from pathlib import Path

from server.cli_settings import default_text
from server.config import Settings, about, flag_of

README = Path(__file__).parent.parent.parent / "README.md"
PRINTS = "# → "  # a comment after a command: part of what it prints


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    language: str
    line: int
    code: str

    @property
    def prints(self) -> list[str]:
        lines = (line.strip() for line in self.code.splitlines())
        return [line.removeprefix(PRINTS) for line in lines if line.startswith(PRINTS)]


def blocks() -> list[Block]:
    text = README.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], text.count("\n", 0, match.start()) + 1, match[2]) for match in found]


def settings_rows() -> list[str]:
    """The table's rows, from the settings themselves."""
    rows = []
    for name, field in Settings.model_fields.items():
        shown = default_text(name, field)
        default = f"`{shown}`" if shown else ""
        rows.append(f"| `{flag_of(name)}` | {default} | {about(name).help} |")
    return rows
