"""What the results' Markdown pages have in common."""

from benchmarks.machine import Machine


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def machine_line(machine: Machine, threads: object) -> str:
    """What the figures were measured on, in a sentence."""
    return (
        f"Machine: {machine.cpu}, {machine.cores} cores ({', '.join(machine.flags)}), "
        f"{machine.memory_gib} GiB, {machine.system}; {threads} threads; Python {machine.python}, "
        + ", ".join(f"{name} {number}" for name, number in machine.packages.items())
        + f"; load average before the run {machine.load}."
    )
