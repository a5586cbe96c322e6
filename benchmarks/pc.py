"""What a PC's chips and several CPUs cost a guest: accesses, interrupts and round trips, on iobus beside QEMU TCG.

The guest is pc.s, a Multiboot image that both boot, on two CPUs. It prints a line, waits for a character, does a piece
of work, and prints a line. The time is taken here, from the character sent to the second line's arrival.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

from benchmarks import guests
from benchmarks.report import QEMU, Row

_PEER: Final = "QEMU TCG"
_IMAGE: Final = Path(__file__).with_suffix(".hex")


class Work(NamedTuple):
    """A piece of work: what it is, and how often the guest does it (as pc.s has it)."""

    name: str
    count: int


WORK: Final = {
    "a": Work("LAPIC read", 100_000),
    "b": Work("LAPIC write", 100_000),
    "c": Work("IOAPIC read", 100_000),
    "d": Work("HPET read", 100_000),
    "e": Work("OUT to port 0x80", 100_000),
    "f": Work("self IPI, taken and ended", 20_000),
    "g": Work("timer: armed, halted, taken", 1_000),
    "h": Work("IPI round trip, both halt", 3_000),
    "i": Work("IPI round trip, PAUSE", 3_000),
    "j": Work("IPI round trip, spinning", 3_000),
    "k": Work("IPI to a busy CPU", 300),
}
"""By the letter that the guest prints."""


def run(quick: bool) -> list[Row]:
    """Measure and return the rows."""
    rounds = 1 if quick else 5
    missing = guests.qemu_missing()
    iobus: dict[str, list[float]] = {letter: [] for letter in WORK}
    peer: dict[str, list[float]] = {letter: [] for letter in WORK}
    with tempfile.TemporaryDirectory(prefix="iobus-bench-") as directory:
        image = Path(directory, "pc.bin")
        image.write_bytes(bytes.fromhex(_IMAGE.read_text().partition("\n\n")[2]))
        for _ in range(rounds):
            _round(on_iobus(image), iobus)
            if not missing:
                _round(on_qemu(image), peer)
    return [
        Row(
            "pc", work.name, "ns", _PEER, min(iobus[letter]), min(peer[letter]) if peer[letter] else None,
            note=missing,
        )
        for letter, work in WORK.items()
    ]  # fmt: skip


def on_iobus(image: Path) -> guests.Guest:
    """Start the guest on iobus."""
    return guests.Guest("iobus", sys.executable, "-m", "iobus", "run", str(image), "--memory", "16M", "--cpus", "2")


def on_qemu(image: Path) -> guests.Guest:
    """Start the guest on QEMU's TCG."""
    return guests.Guest(
        "QEMU", QEMU, "-M", "pc", "-accel", "tcg", "-m", "16", "-smp", "2", "-display", "none", "-nodefaults",
        "-no-reboot", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(image),
    )  # fmt: skip


def _round(guest: guests.Guest, samples: dict[str, list[float]]) -> None:
    """Let a guest do all its work once; add ns for one time of each piece."""
    with guest:
        for letter, work in WORK.items():
            guest.wait_for(f"b{letter}\n".encode())
            begun = perf_counter()
            guest.type(b"g")
            samples[letter].append((guest.wait_for(f"e{letter}\n".encode()) - begun) * 1e9 / work.count)
