"""The address space drawn: a document that is well-formed, whole, and shows who overlaps whom."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.cli import main
from iobus.cli.mapsvg import Piece, draw, size_text

SVG = "{http://www.w3.org/2000/svg}"

PIECES = st.lists(
    st.builds(
        Piece, st.integers(0, 2**52), st.integers(1, 2**52), st.text("<>&\"'ab", max_size=5),
        st.sampled_from(("RAM", "device", "disabled")),
    ),
    max_size=20,
).map(sorted)  # fmt: skip


def boxes(document: str) -> list[dict[str, float]]:
    rects = ElementTree.fromstring(document).iter(f"{SVG}rect")
    return [{key: float(rect.get(key, "0")) for key in ("x", "y", "width", "height")} for rect in list(rects)[1:]]


def test_the_pc_and_a_device_are_drawn(tmp_path: Path) -> None:
    """Every region that `iobus map` prints is in the drawing, by name and first address."""
    file = tmp_path / "map.svg"
    scratch = Path(__file__).parent.parent / "examples" / "scratch.py"
    assert main(["map", "--svg", str(file), "--device", f"{scratch}:Scratch@0xd0000000"]) == 0
    texts = [text.text or "" for text in ElementTree.parse(file).iter(f"{SVG}text")]
    for text in ("mmio", "pio", "vcpu0.mmio", "0xd0000000", "Scratch  (4 KiB)", "lapic0  (4 KiB)", "RAM  (640 KiB)"):
        assert text in texts


@given(PIECES)
def test_any_map_is_well_formed_and_draws_each_piece_once(pieces: list[Piece]) -> None:
    """Whatever names and ranges: valid XML, a box a piece, none on top of another."""
    found = boxes(draw([("bus", pieces)]))
    assert len(found) == len(pieces)
    for number, one in enumerate(found):
        assert one["width"] > 0
        for other in found[number + 1 :]:
            assert one["y"] + one["height"] <= other["y"]


def test_pieces_that_overlap_are_indented() -> None:
    """A piece that begins inside another stands to its right; the next that is clear of both does not."""
    first, inside, clear = boxes(
        draw([("bus", [Piece(0, 16, "a", "RAM"), Piece(8, 4, "b", "device"), Piece(16, 4, "c", "RAM")])])
    )
    assert inside["x"] > first["x"] == clear["x"]


def test_a_file_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names it."""
    assert main(["map", "--svg", "/nowhere/map.svg"]) == 2
    assert capsys.readouterr().err == "iobus: --svg /nowhere/map.svg cannot be written: No such file or directory\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 byte"), (12, "12 bytes"), (4096, "4 KiB"), (0xFF40000, "255.2 MiB"), (1 << 52, "4096 TiB")],
)
def test_sizes_are_told_in_units(size: int, text: str) -> None:
    """The largest unit that is not more than the size."""
    assert size_text(size) == text
