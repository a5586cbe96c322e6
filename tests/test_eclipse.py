"""A vCPU's own device over RAM: it eclipses RAM for that vCPU alone, as a local APIC does that is moved there."""

from __future__ import annotations

import pytest
from bus_devices import Bytes, Decliner, Recorder
from hypothesis import given
from hypothesis import strategies as st

from iobus.clock import SteppedClock
from iobus.devices import lapic_registers as r
from iobus.machine import Machine
from iobus.pc.pc import Pc

PLACE = 0x8000
"""In RAM."""
BASE = 0xFEE00000


@pytest.fixture
def pc() -> Pc:
    """Two CPUs with paging off; the first one's LAPIC is moved onto RAM that holds 0x55 everywhere."""
    pc = Pc(None, memory=1 << 20, cpus=2, clock=SteppedClock())
    pc.machine.memory.write(PLACE - 0x1000, b"\x55" * 0x3000)
    for vcpu in pc.machine.vcpus:
        registers = vcpu.registers
        registers.cr0 = 0x10
        vcpu.registers = registers
    assert pc.lapics[0].write_msr(r.IA32_APIC_BASE, PLACE | 0x900)
    return pc


def test_a_lapic_on_ram_eclipses_it_for_its_own_cpu(pc: Pc) -> None:
    """SDM 11.4.5: it is relocated by writing its base; the other CPU, and devices' DMA, have RAM there."""
    first, second = pc.machine.vcpus
    assert first.load(PLACE + r.VERSION, 4) == r.VERSION_VALUE
    assert second.load(PLACE + r.VERSION, 4) == 0x55555555
    assert first.store(PLACE + r.TPR, 4, 0x30) is None
    assert pc.lapics[0].state.tpr == 0x30
    assert pc.machine.memory.load(PLACE + r.TPR, 4) == 0x55555555
    second.store(PLACE + r.TPR, 4, 0x66)
    assert pc.lapics[0].state.tpr == 0x30 and pc.machine.memory.load(PLACE + r.TPR, 4) == 0x66
    assert pc.machine.dma(pc.ioapic).read(PLACE + r.VERSION, 4) == b"\x55" * 4


def test_only_its_page_is_eclipsed(pc: Pc) -> None:
    """The bytes before and behind are RAM for everybody; an access over the border has both."""
    first = pc.machine.vcpus[0]
    assert first.load(PLACE - 4, 4) == first.load(PLACE + 0x1000, 4) == 0x55555555
    value = first.load(PLACE - 8, 16)
    assert value == int.from_bytes(b"\x55" * 8 + bytes(8), "little"), "offset 0 of the page reads 0"
    assert [first.eclipses_ram(PLACE + at, 0x1000) for at in (-0x1000, 0, 0x1000)] == [False, True, False]
    assert first.eclipses_ram(PLACE - 1, 2) and first.eclipses_ram(PLACE + 0xFFF)
    assert not pc.machine.vcpus[1].eclipses_ram(PLACE, 0x1000)


def test_moved_away_or_disabled_ram_is_as_it_was(pc: Pc) -> None:
    """What lay under it all the time shows again, for each way that the page goes."""
    first = pc.machine.vcpus[0]
    first.store(PLACE + r.TPR, 4, 0x30)
    for base in (BASE | 0x900, PLACE | 0x100):
        assert pc.lapics[0].write_msr(r.IA32_APIC_BASE, base)
        assert first.load(PLACE + r.TPR, 4) == 0x55555555 and not first.eclipses_ram(PLACE)


def test_whoever_runs_from_ram_hears_of_the_change(pc: Pc) -> None:
    """The bus tells of each change; what is eclipsed by then is what `eclipses_ram` says."""
    first = pc.machine.vcpus[0]
    stale: list[bool] = []
    first.mmio.on_change(lambda: stale.append(True))
    pc.lapics[0].write_msr(r.IA32_APIC_BASE, 0x9900)
    assert stale and first.eclipses_ram(0x9000) and not first.eclipses_ram(PLACE)


def test_what_an_engine_sends_by_the_path_ends_in_ram(pc: Pc) -> None:
    """An engine may let a page of RAM go to the path for every vCPU: where no device takes it, it is RAM."""
    first, second = pc.machine.vcpus
    assert first.mmio_path.read(PLACE + r.VERSION, 4) == r.VERSION_VALUE
    assert second.mmio_path.read(PLACE + r.VERSION, 4) == 0x55555555
    second.mmio_path.write(PLACE + 0x123, 2, 0xABCD)
    assert second.mmio_path.read(PLACE + 0x122, 8) == 0x5555555555ABCD55
    assert pc.machine.memory.read(PLACE + 0x122, 4) == b"\x55\xcd\xab\x55"
    assert not pc.machine.unclaimed


def test_what_the_device_declines_is_rams() -> None:
    """Declining asks the next one, and under a vCPU's device that is RAM."""
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0, 0x2000)
    machine.memory.store(0x1000, 4, 0x12345678)
    vcpu = machine.vcpus[0]
    vcpu.mmio.attach(Decliner(), 0x1000, 0x10)
    registers = vcpu.registers
    registers.cr0 = 0x10
    vcpu.registers = registers
    assert vcpu.load(0x1000, 4) == vcpu.mmio_path.read(0x1000, 4) == 0x12345678
    vcpu.store(0x1001, 2, 0xEEEE)
    assert machine.memory.load(0x1000, 4) == 0x12EEEE78


def test_a_claim_that_is_no_range_is_not_known_to_lie_over_ram() -> None:
    """A device that is asked with `in_range` lies under RAM, on a vCPU's bus too: no page can be told that is its."""
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0, 0x1000)
    asked = Recorder()
    asked.in_range = lambda address, size: True  # type: ignore[attr-defined]
    vcpu = machine.vcpus[0]
    vcpu.mmio.attach(asked)
    assert not vcpu.eclipses_ram(0, 0x1000) and vcpu.load(0, 4) == 0 and not asked.calls


@given(
    st.integers(0, 0x40), st.integers(1, 0x30), st.integers(0x1000 - 8, 0x1000 + 0x50), st.integers(1, 40),
    st.binary(min_size=40, max_size=40),
)  # fmt: skip
def test_any_access_sees_the_device_where_it_is_and_ram_elsewhere(
    at: int, length: int, gva: int, size: int, data: bytes
) -> None:
    """A device of any place and length in a page: each element of an access lies wholly in it, or is RAM's."""
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0, 0x3000)
    machine.memory.write(0, bytes(value & 0x7F for value in range(0x3000)))
    device = Bytes(bytes(value | 0x80 for value in range(length)))
    vcpu = machine.vcpus[0]
    vcpu.mmio.attach(device, 0x1000 + at, length)
    registers = vcpu.registers
    registers.cr0 = 0x10
    vcpu.registers = registers
    seen = vcpu.load(gva, size)
    assert isinstance(seen, int)
    for n, byte in enumerate(seen.to_bytes(size, "little")):
        inside = at <= gva + n - 0x1000 < at + length
        assert byte == gva + n & 0x7F or (inside and byte == gva + n - 0x1000 - at | 0x80)
    assert vcpu.store(gva, size, int.from_bytes(data[:size], "little")) is None
    under = machine.memory.read(gva, size)
    for n in range(size):
        inside = at <= gva + n - 0x1000 < at + length
        assert under[n] == data[n] or (inside and device.data[gva + n - 0x1000 - at] == data[n])
