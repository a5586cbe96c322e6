"""Random register maps: every kind, gaps, arrays, a group, descriptions and named values."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st

from iobus.registers import KINDS, RES0, RES1, OnRead, OnWrite, kind
from iobus.registers.entries import Dimension, FieldEntry, GroupEntry, RegisterEntry, RegisterMap, ValueEntry, clean

ALL_KINDS = (
    *KINDS,
    *(
        kind(on_read, on_write)
        for on_read, on_write in itertools.product(OnRead, OnWrite)
        if on_read is not OnRead.ONE and kind(on_read, on_write) not in KINDS
    ),
)
"""Every kind there can be, those without a name of their own included."""


DOCS = st.sampled_from((
    "", "", "", "It's so", 'Says "so"', "A \\ B", "One\n\nTwo", "Größe é", "'\"", 'ends in a "quote"', "back\\",
    '"""', "What it does, at such length that it does not fit on one line. " * 3 + "End", "x" * 200,
)).map(clean)  # fmt: skip
"""Descriptions, as maps have them."""


@st.composite
def values(draw: st.DrawFn, width: int, docs: st.SearchStrategy[str]) -> tuple[ValueEntry, ...]:
    """Names of some of a field's values."""
    numbers = draw(st.just([]) | st.lists(st.integers(0, (1 << width) - 1), max_size=3, unique=True))
    return tuple(ValueEntry(number, f"V{number}", draw(docs)) for number in numbers)


@st.composite
def registers(
    draw: st.DrawFn, docs: st.SearchStrategy[str], offset: int, width: int, array: Dimension | None = None
) -> RegisterEntry:
    """A register with random fields and gaps."""
    kinds = st.sampled_from(ALL_KINDS)
    fields: list[FieldEntry] = []
    bit = draw(st.integers(0, 4))
    while bit < width and draw(st.integers(0, 5)):
        size = draw(st.integers(1, min(9, width - bit)))
        fields.append(
            FieldEntry(
                draw(st.sampled_from(("F", "f"))) + str(len(fields)),
                bit,
                size,
                draw(kinds),
                draw(docs),
                draw(values(size, docs)),
            )
        )
        bit += size + draw(st.integers(0, 3))
    rest = draw(st.sampled_from((RES0, RES1, draw(kinds))))
    plain = RegisterEntry("", 0, width, tuple(fields), 0, rest)
    rest = rest if plain.rest_mask else RES0
    reset = draw(st.integers(0, (1 << width) - 1))
    for mask, access in plain.pieces():
        if not access.keeps:
            reset = reset | mask if access == RES1 else reset & ~mask
    return RegisterEntry(f"R{offset:x}", offset, width, tuple(fields), reset, rest, draw(docs), array)


@st.composite
def maps(draw: st.DrawFn, docs: st.SearchStrategy[str] = DOCS) -> RegisterMap:
    """A bank of some registers, with gaps between them, arrays, and a group."""
    members: list[RegisterEntry | GroupEntry] = []
    offset = 0
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from((8, 16, 32, 64)))
        size = width // 8
        offset = -(-offset // size) * size + size * draw(st.integers(0, 1))
        array = draw(st.none() | st.builds(Dimension, st.integers(1, 3), st.sampled_from((size, 2 * size))))
        members.append(draw(registers(docs, offset, width, array)))
        offset += size if array is None else array.count * array.stride
    if draw(st.booleans()):
        offset = -(-offset // 8) * 8
        inner = (draw(registers(docs, 0, 32)), draw(registers(docs, 4, 16)))
        members.append(GroupEntry("G", offset, inner, draw(docs), Dimension(2, 8)))
        offset += 16
    unmapped: Any = draw(st.sampled_from(("zero", "ones", "decline")))
    return RegisterMap("Bank", tuple(members), offset + draw(st.integers(0, 8)), unmapped, draw(docs))
