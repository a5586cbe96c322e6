"""`iobus map --svg FILE`: the address space drawn, a lane for each bus.

Most of an address space is empty, and a device of 16 bytes has to be seen beside RAM of 4 GiB: the height of a piece
grows with the logarithm of its size, and a gap is a gap of one height, marked as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

_LANE, _GAP, _LEFT, _TOP = 330, 26, 130, 46
_COLOURS: Final = {"RAM": "#dfe7ef", "device": "#f6c58f", "disabled": "#eeeeee"}


class Piece(NamedTuple):
    """A range of a bus that somebody has."""

    base: int
    size: int
    """In bytes."""
    name: str
    kind: str
    """RAM, device, or disabled."""


def draw(lanes: Sequence[tuple[str, Sequence[Piece]]]) -> str:
    """Return an SVG document of `lanes`: a bus's name, and its pieces in the order of their bases.

    Pieces that overlap are drawn beside each other, in that order.
    """
    bodies, bottom = [], 0.0
    for index, (name, pieces) in enumerate(lanes):
        body, end = _lane(_LEFT + index * (_LANE + _LEFT), name, pieces)
        bodies.append(body)
        bottom = max(bottom, end)
    width, height = len(lanes) * (_LANE + _LEFT) + 20, bottom + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "".join(bodies)
        + "</svg>\n"
    )


def _lane(left: int, name: str, pieces: Sequence[Piece]) -> tuple[str, float]:
    lines = [f'<text x="{left}" y="24" font-size="15" font-weight="bold">{escape(name)}</text>\n']
    at, end = float(_TOP), 0
    columns: list[int] = []
    """Where the pieces of each column end; more than one where they overlap."""
    for piece in pieces:
        stop = piece.base + piece.size
        column = next((index for index, used in enumerate(columns) if used <= piece.base), len(columns))
        if piece.base >= end:
            columns, column = [], 0
            if piece.base > end:
                lines.append(_gap(left, at, piece.base - end))
                at += _GAP
        columns[column : column + 1] = [stop]
        tall = 20 + 2.2 * math.log2(piece.size)
        indent = min(40 * column, _LANE - 80)
        lines.append(_box(left + indent, at, _LANE - indent, tall, piece))
        at += tall + 2
        end = max(end, stop)
    return "".join(lines), at


def _box(x: int, y: float, width: int, tall: float, piece: Piece) -> str:
    first, last = f"{piece.base:#x}", f"{piece.base + piece.size - 1:#x}"
    label = escape(f"{piece.name}  ({size_text(piece.size)})")
    dash = ' stroke-dasharray="4 3"' if piece.kind == "disabled" else ""
    return (
        f"<g><title>{label} {first} to {last}</title>"
        f'<rect x="{x}" y="{y:.1f}" width="{width}" height="{tall:.1f}" fill="{_COLOURS[piece.kind]}" '
        f'stroke="#555"{dash}/>'
        f'<text x="{x + 8}" y="{y + tall / 2 + 4:.1f}">{label}</text>'
        f'<text x="{x - 6}" y="{y + 11:.1f}" font-family="monospace" text-anchor="end">{first}</text></g>\n'
    )


def _gap(x: int, y: float, size: int) -> str:
    return (
        f'<text x="{x + 8}" y="{y + _GAP / 2 + 4:.1f}" fill="#777" font-style="italic">nobody: '
        f"{size_text(size)}</text>\n"
    )


def size_text(size: int) -> str:
    """Return `size` in bytes as people say it."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} byte{'s' if size > 1 else ''}"
