"""Bars with their spread as an SVG: few lines, and no library to install for one picture."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.spread import spread

COLOURS = ("#2f6fb0", "#d98032", "#5b9a57", "#a2609b", "#7a6a58", "#3f8f8a")
LEFT, WIDTH, ROW, GAP = 250, 620, 16, 20


def bars(title: str, groups: Mapping[str, Mapping[str, Sequence[float] | str | None]]) -> str:
    """One group of bars per key, each scaled to its own longest; a text stands for a missing bar.

    A bar is the median, its line from the least to the most.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    parts, y = [_text(LEFT, 20, title, size=15)], 34
    for group, values in groups.items():
        most = max((max(v) for v in values.values() if _is_figures(v)), default=1.0)
        y += GAP
        parts.append(_text(8, y, group, size=13, weight="bold"))
        for name, value in values.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts += [_text(LEFT - 8, y, name, anchor="end"), *_bar(y, value, most, colour)]
            y += ROW
    height, width = y + GAP, LEFT + WIDTH + 130
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    head += 'font-family="sans-serif">'
    back = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, back, *parts, "</svg>"]) + "\n"


def _is_figures(value: Sequence[float] | str | None) -> bool:
    return bool(value) and not isinstance(value, str)


def _bar(y: int, value: Sequence[float] | str | None, most: float, colour: str) -> list[str]:
    if not value or isinstance(value, str):
        return [_text(LEFT + 4, y, (value or "not measured").partition(":")[0], fill="#a02020")]
    figure = spread(value)
    middle, least, high = (
        round(WIDTH * part / most, 1) for part in (figure.median, figure.least, figure.most)
    )
    return [
        f'<rect x="{LEFT}" y="{y - 11}" width="{middle}" height="12" fill="{colour}"/>',
        f'<line x1="{LEFT + least}" x2="{LEFT + high}" y1="{y - 5}" y2="{y - 5}" stroke="#222"/>',
        _text(LEFT + high + 6, y, figure.text()),
    ]


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    anchor: str = "start",
    weight: str = "normal",
    fill: str = "#222",
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(text)}</text>'
    )
