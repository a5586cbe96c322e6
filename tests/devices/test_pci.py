"""devices/pci.py by the PCI Local Bus Specification, and i440fx.py by the 440FX data sheet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.bus import Bus, Device
from iobus.devices.i440fx import BASE, RE, SEGMENTS, WE, HostBridge, Shadow
from iobus.devices.pci import COMMAND, PciConfig, PciFunction
from iobus.devices.reset import ResetControl
from iobus.memory import Memory

ADDRESS, DATA = 0xCF8, 0xCFC


class Rig:
    """Mechanism #1 on a port bus, with one function at device 3 that has a 4 KiB memory BAR."""

    def __init__(self) -> None:
        self.function = PciFunction(0x1234, 0xABCD, 0x020000, 7)
        self.function.writable(COMMAND, 2, 0x0007)
        self.function.writable(0x10, 4, 0xFFFFF000)
        self.config = PciConfig()
        self.config.attach(self.function, 3)
        self.bus = Bus(0x10000)
        self.bus.attach(self.config, ADDRESS)

    def select(self, device: int, register: int, bus: int = 0, function: int = 0) -> None:
        self.bus.write(ADDRESS, 4, 0x80000000 | bus << 16 | device << 11 | function << 8 | register)


def test_a_function_is_found_by_its_identity() -> None:
    """3.2.2.3.2: CONFIG_ADDRESS with the enable bit, then bytes, words and the double word of CONFIG_DATA."""
    rig = Rig()
    rig.select(3, 0)
    assert rig.bus.read(ADDRESS, 4) == 0x80001800
    assert rig.bus.read(DATA, 4) == 0xABCD1234
    assert (rig.bus.read(DATA + 2, 2), rig.bus.read(DATA + 1, 1)) == (0xABCD, 0x12)
    rig.select(3, 8)
    assert rig.bus.read(DATA, 4) == 0x02000007


def test_where_no_function_is_reads_give_all_ones() -> None:
    """6.1: a master abort; on another bus, another device, another function. A write goes nowhere."""
    rig = Rig()
    for place in ({"device": 4}, {"device": 3, "function": 1}, {"device": 3, "bus": 1}):
        rig.select(**{"register": 0, **place})
        assert rig.bus.read(DATA, 4) == 0xFFFFFFFF and rig.bus.read(DATA, 1) == 0xFF
        rig.bus.write(DATA, 4, 0)
    rig.select(3, 0)
    assert rig.bus.read(DATA, 4) == 0xABCD1234


def test_only_writable_bits_change() -> None:
    """The command register's three, and a BAR that tells its size by the bits that stay 0 (6.2.5.1)."""
    rig = Rig()
    rig.select(3, 4)
    rig.bus.write(DATA, 4, 0xFFFFFFFF)
    assert rig.bus.read(DATA, 4) == 0x00000007
    rig.select(3, 0x10)
    rig.bus.write(DATA, 4, 0xFFFFFFFF)
    assert rig.bus.read(DATA, 4) == 0xFFFFF000
    rig.bus.write(DATA + 3, 1, 0xD0)
    assert rig.bus.read(DATA, 4) == 0xD0FFF000
    rig.select(3, 0)
    rig.bus.write(DATA, 4, 0)
    assert rig.bus.read(DATA, 4) == 0xABCD1234


def test_without_the_enable_bit_the_data_port_is_not_decoded() -> None:
    """ "An access to CONFIG_DATA with the bit clear is passed on as an ordinary I/O access"."""
    rig = Rig()
    rig.bus.write(ADDRESS, 4, 0x00001800)
    assert rig.bus.read(DATA, 4) is NotImplemented
    assert rig.bus.write(DATA, 4, 0) is NotImplemented


def test_the_reset_register_lies_within() -> None:
    """CONFIG_ADDRESS is accessed as a double word only: port 0xCF9 is RST_CNT's, though attached later."""
    rig = Rig()
    resets: list[None] = []
    rig.bus.attach(ResetControl(lambda: resets.append(None)), 0xCF9, 1)
    rig.bus.write(ADDRESS, 4, 0xFFFFFFFF)
    assert rig.bus.read(ADDRESS, 4) == 0x80FFFFFC  # reserved bits read 0
    rig.bus.write(0xCF9, 1, 6)
    assert len(resets) == 1 and rig.bus.read(ADDRESS, 4) == 0x80FFFFFC
    assert rig.bus.read(ADDRESS, 1) is NotImplemented and rig.bus.read(ADDRESS, 2) is NotImplemented


def test_a_reset_reaches_the_functions() -> None:
    """CONFIG_ADDRESS is 0, and registers are as at power-on."""
    rig = Rig()
    rig.select(3, 4)
    rig.bus.write(DATA, 2, 7)
    rig.config.reset()
    assert rig.bus.read(ADDRESS, 4) == 0
    rig.select(3, 4)
    assert rig.bus.read(DATA, 2) == 0


def test_a_place_is_taken_once() -> None:
    """Device 0-31, function 0-7, each by one function."""
    rig = Rig()
    with pytest.raises(ValueError, match="PCI device 3 function 0 is taken"):
        rig.config.attach(rig.function, 3)
    for device, number in ((32, 0), (0, 8), (-1, 0)):
        with pytest.raises(ValueError, match="devices 0-31 with functions 0-7"):
            rig.config.attach(rig.function, device, number)
    assert rig.config.functions == (rig.function,)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from((1, 2, 4)),
            st.none() | st.integers(0, 2**32 - 1) | st.sampled_from((0x80001810, 0x80000058, 0x8000005C)),
        )
    )
)
def test_any_guest_of_configuration_space(accesses: list[tuple[int, int, int | None]]) -> None:
    """Nothing raises, values fit, and a restored bridge calls for the same shadow as the one it was saved from."""

    def make() -> tuple[PciConfig, HostBridge, dict[int, int]]:
        shadow: dict[int, int] = {}
        bridge = HostBridge(shadow.__setitem__)
        config = PciConfig()
        config.attach(bridge, 0)
        config.attach(Rig().function, 3)
        return config, bridge, shadow

    config, bridge, shadow = make()
    bus = Bus(0x10000)
    bus.attach(config, ADDRESS)
    for offset, size, value in accesses:
        if value is None:
            answer = bus.read(ADDRESS + offset, size)
            assert answer is NotImplemented or 0 <= answer < 1 << 8 * size
        else:
            bus.write(ADDRESS + offset, size, value & (1 << 8 * size) - 1)
    other, other_bridge, other_shadow = make()
    other.restore(config.save())
    other_bridge.restore(bridge.save())
    assert (other.save(), other_bridge.save(), other_shadow) == (config.save(), bridge.save(), shadow)


# The host bridge.


def test_the_bridge_is_a_440fx() -> None:
    """Vendor 8086h, device 1237h, a host bridge; memory and bus master always on; PAM registers 0 at reset."""
    bridge = HostBridge(lambda segment, attributes: None)
    assert bridge.read_config(0, 4) == 0x12378086
    assert bridge.read_config(0xA, 2) == 0x0600
    assert bridge.read_config(4, 2) & 6 == 6
    assert bytes(bridge.read_config(0x59 + index, 1) for index in range(7)) == bytes(7)


def test_each_pam_nibble_is_a_segment() -> None:
    """3.2.13: PAM0's upper half is F0000h; PAM1's lower half C0000h, its upper C4000h, ...; bits 2 and 3 reserved."""
    calls: dict[int, int] = {}
    bridge = HostBridge(calls.__setitem__)
    order = [12, *range(12)]
    nibbles = [(0x59, 4), *((0x5A + index // 2, 4 * (index % 2)) for index in range(12))]
    for segment, (register, shift) in zip(order, nibbles, strict=True):
        for attributes in (RE, WE, RE | WE):
            bridge.write_config(register, 1, attributes << shift)
            assert calls == {**dict.fromkeys(range(13), 0), segment: attributes}
        bridge.write_config(register, 1, 0)
    for register in range(0x59, 0x60):
        bridge.write_config(register, 1, 0xFF)
        assert bridge.read_config(register, 1) == (0x30 if register == 0x59 else 0x33)
    bridge.reset()
    assert calls == dict.fromkeys(range(13), 0)


# Shadow RAM.

ROM = bytes(range(256)) * 512  # 128 KiB


def test_without_ram_the_rom_is_seen_up_to_1_mib() -> None:
    """As at reset: 128 KiB of it, and all ones below."""
    memory = Memory()
    Shadow(memory, ROM)
    assert memory.read(0xE0000, 0x20000) == ROM
    assert memory.read(BASE, 0x20000) == b"\xff" * 0x20000
    short = Memory()
    Shadow(short, ROM[:0x1000])
    assert short.read(0xFE000, 0x2000) == b"\xff" * 0x1000 + ROM[:0x1000]


ACTIONS = st.lists(
    st.tuples(st.just("set"), st.integers(0, 12), st.integers(0, 3))
    | st.tuples(st.just("write"), st.integers(0, 0x3FFFF), st.integers(0, 2**64 - 1))
    | st.tuples(st.just("save"), st.just(0), st.just(0)),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_shadow_ram_is_as_the_data_sheet_says(actions: list[tuple[str, int, int]]) -> None:
    """4.1: beside a plain model of RAM and ROM. Reads by RE, writes by WE, RAM keeps its contents behind the ROM."""
    memory = Memory()
    shadow = Shadow(memory, ROM)
    bus = Bus()
    bus.attach(shadow, BASE)
    ram, rom = bytearray(0x40000), b"\xff" * 0x20000 + ROM
    attributes = [0] * 13
    touched = [0]
    for action, place, value in actions:
        if action == "set":
            attributes[place] = value
            shadow.set(place, value)
        elif action == "save":
            saved = shadow.save()
            shadow.restore(saved)
            assert shadow.save() == saved
        else:
            size = 1 << value % 4
            place -= place % size
            data = (value >> 8 & (1 << 8 * size) - 1 & (1 << 56) - 1).to_bytes(size, "little")
            segment = min(place // 0x4000, 12)
            if attributes[segment] & WE:
                ram[place : place + size] = data
            if memory.find(BASE + place, size, write=True) is not None:
                memory.write(BASE + place, data)
            else:
                result = bus.write(BASE + place, size, int.from_bytes(data, "little"))
                assert (result is NotImplemented) == (not attributes[segment] & WE)
            touched.append(place)
        for at in touched:
            source = ram if attributes[min(at // 0x4000, 12)] & RE else rom
            assert memory.read(BASE + at, 8 if at < 0x3FFF8 else 1)[:1] == source[at : at + 1]
    for number, (base, size) in enumerate(SEGMENTS):
        source = ram if attributes[number] & RE else rom
        assert memory.read(base, size) == source[base - BASE : base - BASE + size]


def test_writes_that_ram_does_not_take_go_on() -> None:
    """Without WE they are forwarded: a device behind gets them."""
    memory, taken = Memory(), list[int]()
    shadow = Shadow(memory, ROM)
    bus = Bus()
    bus.attach(shadow, BASE)
    behind = Device()
    behind.write = lambda offset, size, value: taken.append(value)  # type: ignore[method-assign]
    bus.attach(behind, BASE, 0x1000)
    bus.write(BASE, 4, 1)
    shadow.set(0, RE)
    bus.write(BASE, 4, 2)
    shadow.set(0, WE)
    bus.write(BASE, 4, 3)
    assert taken == [1, 2]
    shadow.set(0, RE | WE)
    assert memory.load(BASE, 4) == 3
