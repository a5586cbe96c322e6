"""What the bus does to an access on its way to a device: sizes, byte order, failures, observers."""

from __future__ import annotations

from typing import Any

import pytest
from bus_devices import Bytes, Decliner, Failing, Recorder

from iobus.bus import Bus, DeviceError, Region

# Sizes and byte order.


def test_a_wide_access_is_split_lowest_address_first() -> None:
    """An 8-byte access to a device that implements 4 arrives as two, the lower half first."""
    bus, device = Bus(), Bytes()
    bus.attach(device, 0x100, 16, implements=(4,))
    assert bus.read(0x100, 8) == 0x17161514_13121110
    assert bus.write(0x108, 8, 0x88776655_44332211) is None
    assert device.calls == [("r", 0, 4), ("r", 4, 4), ("w", 8, 4, 0x44332211), ("w", 12, 4, 0x88776655)]


def test_a_narrow_access_is_served_from_the_unit_that_holds_it() -> None:
    """A byte of a 4-byte register is cut from the register; writing it reads the register first."""
    bus, device = Bus(), Bytes()
    bus.attach(device, 0x100, 16, implements=(4,))
    assert bus.read(0x106, 1) == 0x16
    assert bus.write(0x106, 1, 0xFF) is None
    assert device.calls == [("r", 4, 4), ("r", 4, 4), ("w", 4, 4, 0x17FF1514)]


def test_an_access_over_two_units_is_merged_from_both() -> None:
    """An access at offset 2 of 4-byte registers takes the outer ones' halves and keeps their other halves."""
    bus, device = Bus(), Bytes()
    bus.attach(device, 0, 16, implements=(4,))
    assert bus.read(2, 8) == 0x19181716_15141312
    assert bus.write(2, 8, 0xAAAAAAAA_BBBBBBBB) is None
    assert device.calls == [
        *[("r", 0, 4), ("r", 4, 4), ("r", 8, 4)],
        *[("r", 0, 4), ("w", 0, 4, 0xBBBB1110), ("w", 4, 4, 0xAAAABBBB), ("r", 8, 4), ("w", 8, 4, 0x1B1AAAAA)],
    ]


def test_an_implemented_size_reaches_the_device_as_it_is() -> None:
    """Byte order, or another size that needs splitting, does not change how an implemented size arrives."""
    for endian in ("little", "big"):
        bus, device = Bus(), Bytes(endian=endian)
        bus.attach(device, 0, 16, implements=(1, 4), endian=endian)
        assert bus.read(1, 4) == 0x14131211
        assert device.calls == [("r", 1, 4)]


@pytest.mark.parametrize("implements", [(1, 2, 4, 8), (1,), (2,), (4,), (8,), (1, 4), (2, 8)])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_every_split_gives_the_same_bytes(implements: tuple[int, ...], endian: Any) -> None:
    """Whatever a device implements and in which byte order, memory-like registers read and write as memory does."""
    for size in (1, 2, 4, 8):
        for offset in range(17 - size):
            bus, device, memory = Bus(), Bytes(endian=endian), bytearray(range(0x10, 0x20))
            bus.attach(device, 0x40, 16, implements=implements, endian=endian)
            assert bus.read(0x40 + offset, size) == int.from_bytes(memory[offset : offset + size], "little")
            value = 0xF1E2D3C4_B5A69788 >> 8 * (8 - size)
            assert bus.write(0x40 + offset, size, value) is None
            memory[offset : offset + size] = value.to_bytes(size, "little")
            assert device.data == memory
            assert all(call[2] in implements for call in device.calls)


def test_big_endian_puts_the_most_significant_byte_first() -> None:
    """A guest that reads a big-endian register by 4 sees it swapped; by bytes, most significant first."""

    class Register(Recorder):
        def read(self, offset: int, size: int) -> int:
            return 0x11223344 if size == 4 else NotImplemented

    bus = Bus()
    bus.attach(Register(), 0, 4, sizes=(1, 2, 4), implements=(4,), endian="big")
    assert bus.read(0, 4) == 0x44332211
    assert [bus.read(offset, 1) for offset in range(4)] == [0x11, 0x22, 0x33, 0x44]
    assert bus.read(2, 2) == 0x4433


def test_a_split_access_is_declined_whole() -> None:
    """When a device declines one piece, the next claimant gets the whole access, although pieces were taken."""

    class Half(Bytes):
        def read(self, offset: int, size: int) -> int:
            self.calls.append(("r", offset, size))
            return 1 if offset < 4 else NotImplemented

        def write(self, offset: int, size: int, value: int) -> Any:
            self.calls.append(("w", offset, size, value))
            return None if offset < 4 else NotImplemented

    bus, half, behind = Bus(), Half(), Recorder(0x77)
    bus.attach(half, 0, 16, implements=(2, 4))
    bus.attach(behind, 0, 16)
    for _ in range(2):
        assert bus.read(0, 8) == 0x77
        assert bus.write(0, 8, 0x2222_2222_1111_1111) is None
    assert half.calls == [("r", 0, 4), ("r", 4, 4), ("w", 0, 4, 0x11111111), ("w", 4, 4, 0x22222222)] * 2
    assert behind.calls == [(0, 8), (0, 8, 0x2222_2222_1111_1111)] * 2
    assert bus.write(4, 1, 5) is None  # the unit's other byte cannot be read: declined before any write
    assert half.calls[-1] == ("r", 4, 2)
    assert behind.calls[-1] == (4, 1, 5)


# When a device fails.


@pytest.mark.parametrize("implements", [None, (1,)])
def test_a_devices_exception_names_the_access(implements: tuple[int, ...] | None) -> None:
    """`DeviceError` tells device, region, address, offset, size, value and cause; the bus goes on working."""
    bus, device, other = Bus(), Failing(), Recorder()
    bus.attach(device, 0x1000, 0x10, name="broken", implements=implements)
    bus.attach(other, 0x2000, 0x10)
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            bus.read(0x1004, 4)
        error = caught.value
        assert (error.device, error.region) == (device, "broken")
        assert (error.address, error.offset, error.size, error.value) == (0x1004, 4, 4, None)
        assert not error.is_write
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert error.__cause__.__traceback__ is not None
        assert str(error) == (
            "Failing at region 'broken': 4-byte read at address 0x1004 (offset 0x4): ZeroDivisionError: no divisor"
        )
        with pytest.raises(DeviceError) as caught:
            bus.write(0x1008, 2, 0xBEEF)
        assert caught.value.is_write and caught.value.value == 0xBEEF
        assert "2-byte write of 0xbeef at address 0x1008 (offset 0x8): KeyError" in str(caught.value)
        assert bus.read(0x2000, 1) == 0x42


@pytest.mark.parametrize("implements", [None, (1,)])
@pytest.mark.parametrize("answer", [0x100, 1 << 70, -1, None, "A", b"A", 1.0, [1]])
def test_an_answer_that_is_no_value_is_the_devices_error(answer: Any, implements: tuple[int, ...] | None) -> None:
    """Too wide, negative or no int: `DeviceError`, with what was returned, on the first read and on the second."""
    bus = Bus()
    bus.attach(Recorder(answer), 0, 4, implements=implements)
    for _ in range(2):
        with pytest.raises(DeviceError, match="returned") as caught:
            bus.read(1, 1)
        assert (caught.value.address, caught.value.size, caught.value.value) == (1, 1, None)


class Indexable:
    """What numpy's integers are like: they shift and compare as an int, and are none."""

    def __rshift__(self, count: int) -> int:
        return 0

    def __index__(self) -> int:
        return 1


def test_only_ints_are_values() -> None:
    """What merely behaves like an int is refused: an engine hands the value to machine code. Bools and enums pass."""
    bus, device = Bus(), Recorder(Indexable())
    bus.attach(device, 0, 4)
    for _ in range(2):
        with pytest.raises(DeviceError, match="it must be an int from 0 to 0xff, or NotImplemented"):
            bus.read(0, 1)
    device.answer = True
    assert type(bus.read(0, 1)) is int and bus.read(0, 1) == 1


def test_a_failing_in_range_is_the_devices_error() -> None:
    """An exception in `in_range` is reported as one in the access that asked it, a write's value included."""

    class Broken(Recorder):
        def in_range(self, address: int, size: int) -> bool:
            raise OSError("gone")

    bus = Bus()
    bus.attach(Broken(), name="asked")
    with pytest.raises(DeviceError, match=r"region 'asked': 2-byte write of 0x5 at address 0x30 .*OSError: gone"):
        bus.write(0x30, 2, 5)
    with pytest.raises(DeviceError, match="2-byte read at address 0x30"):
        bus.read(0x30, 2)


def test_an_interrupt_from_the_keyboard_is_no_device_error() -> None:
    """`KeyboardInterrupt` passes through a device's access untouched."""

    class Slow(Recorder):
        def read(self, offset: int, size: int) -> int:
            raise KeyboardInterrupt

    bus = Bus()
    bus.attach(Slow(), 0, 4)
    with pytest.raises(KeyboardInterrupt):
        bus.read(0, 4)


# `ask`.


def test_ask_tells_before_each_device_and_may_refuse() -> None:
    """`ask` calls its function ahead of every device in turn, decliners included; what it raises ends the access."""
    bus, decliner, device = Bus(), Decliner(), Recorder()
    first, second = bus.attach(decliner, 0, 16), bus.attach(device, 0, 16)
    asked: list[Region] = []
    assert bus.ask(0, 4, None, asked.append) == 0x42
    assert bus.ask(0, 4, 7, asked.append) is None
    assert asked == [first, second] * 2

    def refuse(region: Region) -> None:
        if region is second:
            raise PermissionError

    device.calls.clear()
    with pytest.raises(PermissionError):
        bus.ask(0, 4, None, refuse)
    assert device.calls == [] and len(decliner.calls) == 3
