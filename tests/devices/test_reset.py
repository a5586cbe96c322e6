"""Ports 0xCF9 and 0x92 (ICH9 datasheet, section 13.7), and the byte latches at 0x80-0x8F."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Bus
from iobus.devices.post import Post
from iobus.devices.reset import FULL_RST, RST_CPU, SYS_RST, ResetControl, SystemControlA


class Resets:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_rst_cnt_resets_when_rst_cpu_goes_from_0_to_1() -> None:
    """The way Linux does it: SYS_RST first, then both; only the transition resets."""
    resets = Resets()
    control = ResetControl(resets)
    control.write(0, 1, SYS_RST)
    assert resets.count == 0
    assert control.read(0, 1) == SYS_RST
    control.write(0, 1, SYS_RST | RST_CPU)
    assert resets.count == 1
    control.write(0, 1, SYS_RST | RST_CPU | FULL_RST)
    assert resets.count == 1
    control.write(0, 1, 0)
    control.write(0, 1, RST_CPU)
    assert resets.count == 2


def test_rst_cnt_reserved_bits_read_0() -> None:
    """Bits 7-4 and 0 are reserved."""
    control = ResetControl(Resets())
    control.write(0, 1, 0xFF & ~RST_CPU)
    assert control.read(0, 1) == SYS_RST | FULL_RST


def test_rst_cnt_is_0_after_a_reset() -> None:
    """So that the next transition resets again."""
    resets = Resets()
    control = ResetControl(resets)
    control.write(0, 1, 0x0E)
    control.reset()
    assert control.read(0, 1) == 0
    control.write(0, 1, 0x0E)
    assert resets.count == 2


def test_port92_resets_when_init_now_goes_from_0_to_1() -> None:
    """Bit 0's transition resets; a read-modify-write of the A20 bit does not."""
    resets = Resets()
    port = SystemControlA(resets)
    port.write(0, 1, port.read(0, 1) | 2)
    assert (resets.count, port.read(0, 1)) == (0, 2)
    port.write(0, 1, 3)
    port.write(0, 1, 3)
    assert resets.count == 1
    port.reset()
    assert port.read(0, 1) == 0


@pytest.mark.parametrize("device", [ResetControl, SystemControlA])
@given(st.lists(st.tuples(st.sampled_from((1, 2, 4, 8)), st.none() | st.integers(0, 2**64 - 1))))
def test_any_guest_of_a_reset_port(
    device: type[ResetControl | SystemControlA], accesses: list[tuple[int, int | None]]
) -> None:
    """No access raises, values fit, the state survives save and restore."""
    port = device(Resets())
    for size, value in accesses:
        if value is None:
            assert 0 <= port.read(0, size) < 256
        else:
            port.write(0, size, value & (1 << 8 * size) - 1)
    other = device(Resets())
    other.restore(port.save())
    assert other.save() == port.save()


def test_post_ports_read_back_what_was_written() -> None:
    """Each of the 16 is a byte of its own, 0 at power-on."""
    post = Post()
    for offset in range(16):
        post.write(offset, 1, 0xF0 | offset)
    assert [post.read(offset, 1) for offset in range(16)] == [0xF0 | offset for offset in range(16)]
    post.reset()
    assert [post.read(offset, 1) for offset in range(16)] == [0] * 16


def test_post_listener_hears_port_0x80_only() -> None:
    """Every code in order, also the same again; a word at 0x80 is two byte cycles of which the first is its."""
    codes: list[int] = []
    post = Post(codes.append)
    for offset, value in ((0, 0x55), (0, 0x55), (7, 0x12), (15, 0x13)):
        post.write(offset, 1, value)
    post.write(0, 2, 0xBBAA)
    assert codes == [0x55, 0x55, 0xAA]
    assert post.read(0, 2) == 0xBBAA
    assert post.read(1, 1) == 0xBB


@given(st.lists(st.tuples(st.sampled_from((1, 2, 4, 8)), st.integers(0, 15), st.none() | st.integers(0, 2**64 - 1))))
def test_any_guest_of_the_post_ports(accesses: list[tuple[int, int, int | None]]) -> None:
    """The 16 ports are 16 bytes of memory, whatever the size and alignment of the accesses."""
    post, model = Post(), bytearray(16)
    bus = Bus(0x10000)
    bus.attach(post, 0x80)
    for size, offset, value in accesses:
        if offset + size > 16:
            continue
        if value is None:
            assert bus.read(0x80 + offset, size) == int.from_bytes(model[offset : offset + size], "little")
        else:
            value &= (1 << 8 * size) - 1
            bus.write(0x80 + offset, size, value)
            model[offset : offset + size] = value.to_bytes(size, "little")
    other = Post()
    other.restore(post.save())
    assert other.save() == post.save()
