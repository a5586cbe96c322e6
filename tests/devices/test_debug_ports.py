"""The devices that only emulators have: debug console, debug exit, "Shutdown", and the test device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Bus
from iobus.devices.debug_console import DebugConsole
from iobus.devices.debug_exit import DebugExitPort, ShutdownPort
from iobus.devices.test_device import EchoMemory, EchoPorts, LineSwitches
from iobus.irq import Line, Pin
from iobus.state import StateError


def test_the_debug_console_is_there_and_takes_bytes() -> None:
    """It reads 0xE9; each byte written is given on, those of a wider access lowest first."""
    shown: list[bytes] = []
    console = DebugConsole(shown.append)
    assert console.read(0, 1) == 0xE9
    console.write(0, 1, 0x41)
    console.write(0, 2, 0x4342)
    assert b"".join(shown) == b"ABC"


def test_the_debug_exit_gives_the_code_of_any_size() -> None:
    """isa-debug-exit with iobase 0xF4 and iosize 4."""
    codes: list[int] = []
    bus = Bus(0x10000)
    bus.attach(DebugExitPort(codes.append), 0xF4)
    bus.write(0xF4, 4, 0xFFFFFFFF)
    bus.write(0xF4, 1, 0)
    bus.write(0xF6, 2, 7)
    assert codes == [0xFFFFFFFF, 0, 7] and bus.read(0xF4, 4) == 0


@pytest.mark.parametrize(
    ("text", "times"),
    [
        (b"Shutdown", 1),
        (b"ShutdownShutdown", 2),
        (b"ShutShutdown", 1),
        (b"SShutdown", 1),
        (b"shutdown", 0),
        (b"Shut\0down", 0),
        (b"Shutdow", 0),
    ],
)
def test_the_word_shutdown_powers_off(text: bytes, times: int) -> None:
    """Its bytes one after the other, and what stands before them does not matter."""
    calls: list[None] = []
    port = ShutdownPort(lambda: calls.append(None))
    for byte in text:
        port.write(0, 1, byte)
    assert len(calls) == times


def test_a_reset_forgets_the_beginning_of_the_word() -> None:
    """Half a word before it and half behind are none."""
    calls: list[None] = []
    port = ShutdownPort(lambda: calls.append(None))
    for byte in b"Shut":
        port.write(0, 1, byte)
    port.reset()
    for byte in b"down":
        port.write(0, 1, byte)
    assert not calls


def test_the_test_ports_hold_what_was_written() -> None:
    """0xE0-0xE3 in 1, 2 and 4 bytes; 0xE8-0xEB are the same bytes; 0xE4-0xE7 take anything and read 0."""
    bus = Bus(0x10000)
    bus.attach(EchoPorts(), 0xE0)
    bus.write(0xE0, 4, 0x12345678)
    assert [bus.read(0xE0 + offset, 1) for offset in range(4)] == [0x78, 0x56, 0x34, 0x12]
    assert bus.read(0xE2, 2) == 0x1234 and bus.read(0xE8, 4) == 0x12345678
    bus.write(0xE9, 1, 0xFF)
    bus.write(0xE4, 4, 0xFFFFFFFF)
    assert bus.read(0xE0, 4) == 0x1234FF78 and bus.read(0xE4, 4) == 0
    bus.write(0xE2, 2, 0xBEEF)
    assert bus.read(0xE0, 4) == 0xBEEFFF78


def lines(count: int = 24) -> tuple[list[Line], list[Pin]]:
    pins = [Pin(name=f"irq{number}") for number in range(count)]
    return [pin.line() for pin in pins], pins


def test_a_switch_a_line() -> None:
    """`outb(level, base + n)` sets line n, whatever the value's other bits; it reads back; reset lowers all."""
    made, pins = lines()
    switches = LineSwitches(made)
    switches.write(14, 1, 1)
    switches.write(23, 1, 0x80)
    assert [pin.level for pin in pins] == [number in (14, 23) for number in range(24)]
    assert switches.read(14, 1) == 1 and switches.read(13, 2) == 0x100
    switches.write(14, 4, 0)
    assert not pins[14].level
    switches.reset()
    assert not any(pin.level for pin in pins)


def test_the_test_memory_holds_what_was_written() -> None:
    """At any size and alignment."""
    bus = Bus()
    bus.attach(EchoMemory(), 0xFF000000)
    bus.write(0xFF000003, 8, 0x1122334455667788)
    assert bus.read(0xFF000005, 2) == 0x5566 and bus.read(0xFF000000, 4) == 0x88000000
    bus.write(0xFF00FFFF, 1, 0xAA)
    assert bus.read(0xFF00FFFF, 1) == 0xAA and bus.read(0xFF00FFFF, 2) is NotImplemented


@pytest.mark.parametrize(
    ("device", "plain", "message"),
    [
        (EchoPorts(), {"latch": [0, 256, 0, 0]}, r"EchoPortsState\.latch\[1\]: got 0x100"),
        (EchoMemory(), {"data": bytes(0x10001)}, r"EchoMemoryState\.data: 65537 entries, want 65536 to 65536"),
        (LineSwitches(()), {"levels": -1}, r"LineSwitchesState\.levels: got -0x1"),
        (ShutdownPort(lambda: None), {"matched": 8}, r"ShutdownPortState\.matched: got 0x8, want 0x0 to 0x7"),
    ],
)
def test_a_record_that_cannot_be_is_refused(device: EchoPorts, plain: dict[str, object], message: str) -> None:
    """Saved data may come from anywhere."""
    with pytest.raises(StateError, match=message):
        device.restore(plain)


@given(st.lists(st.tuples(st.integers(0, 23), st.sampled_from((1, 2, 4)), st.none() | st.integers(0, 2**32 - 1))))
def test_any_guest_of_these_devices(accesses: list[tuple[int, int, int | None]]) -> None:
    """Nothing raises, values fit, and a restored device has the same state and drives its lines alike."""

    def make() -> tuple[tuple[EchoPorts, LineSwitches, EchoMemory, ShutdownPort], list[Pin]]:
        made, pins = lines()
        return (EchoPorts(), LineSwitches(made), EchoMemory(), ShutdownPort(lambda: None)), pins

    devices, pins = make()
    for device in devices:
        bus = Bus(0x10000)
        bus.attach(device, 0)
        for offset, size, value in accesses:
            if value is None:
                answer = bus.read(offset, size)
                assert answer is NotImplemented or 0 <= answer < 1 << 8 * size
            else:
                bus.write(offset, size, value & (1 << 8 * size) - 1)
    others, other_pins = make()
    for device, other in zip(devices, others, strict=True):
        other.restore(device.save())
        assert other.save() == device.save()
    assert [pin.level for pin in pins] == [pin.level for pin in other_pins]
