"""The bus by example: who is asked, moving and leaving, registrations that cannot be, accesses that are none."""

from __future__ import annotations

from typing import Any

import pytest
from bus_devices import Decliner, Recorder

from iobus.bus import Bus, BusFullError, Device, Region, RegistrationError

# Who is asked.


def test_a_device_sees_the_offset_from_its_base() -> None:
    """A region's device is given offsets in bytes from the region's base, and the access's size and value."""
    bus, device = Bus(), Recorder()
    bus.attach(device, 0x1000, 0x100)
    assert bus.read(0x1004, 4) == 0x42
    assert bus.write(0x10FF, 1, 7) is None
    assert device.calls == [(4, 4), (0xFF, 1, 7)]


def test_an_access_must_lie_wholly_inside() -> None:
    """An access that sticks out at either end is not claimed, neither in part nor by the neighbours together."""
    bus, first, second = Bus(), Recorder(1), Recorder(2)
    bus.attach(first, 0x1000, 8)
    bus.attach(second, 0x1008, 8)
    assert bus.read(0x0FFC, 8) is NotImplemented
    assert bus.read(0x1004, 8) is NotImplemented
    assert bus.write(0x100C, 8, 0) is NotImplemented
    assert bus.read(0x1004, 4) == 1
    assert bus.read(0x1008, 8) == 2
    assert first.calls == [(4, 4)] and second.calls == [(0, 8)]


def test_an_access_that_sticks_out_of_a_region_goes_to_the_one_behind_it() -> None:
    """Whole-access containment holds per claimant: the wider region behind takes what the narrow one cannot."""
    bus, narrow, wide = Bus(), Recorder(1), Recorder(2)
    bus.attach(narrow, 0x10, 4, priority=1)
    bus.attach(wide, 0, 0x100)
    assert bus.read(0x10, 4) == 1
    assert bus.read(0x10, 8) == 2
    assert bus.read(0x0E, 4) == 2


def test_higher_priority_then_earlier_registration() -> None:
    """Where regions overlap the higher priority answers; among equals, the earlier registration."""
    bus = Bus()
    regions = [bus.attach(Recorder(i), 0, 16, priority=p) for i, p in enumerate((0, 0, 5, 5, -1))]
    for expected in (2, 3, 0, 1, 4):
        assert bus.read(0, 1) == expected
        regions[expected].detach()
    assert bus.read(0, 1) is NotImplemented


def test_a_declined_access_goes_on_in_order_each_time() -> None:
    """`NotImplemented` passes an access to the next in order, the first time and when it is repeated."""
    bus, second, third = Bus(), Decliner(reads=True, writes=False), Recorder(3)
    first = Decliner()
    bus.attach(first, 0, 16)
    bus.attach(second, 0, 16)
    bus.attach(third, 0, 16)
    for _ in range(3):
        assert bus.read(4, 2) == 3
        assert bus.write(4, 2, 9) is None
    assert first.calls == second.calls == [(4, 2), (4, 2, 9)] * 3
    assert third.calls == [(4, 2)] * 3


def test_what_all_decline_nobody_claims() -> None:
    """When every claimant declines, the bus itself answers `NotImplemented`, each of them asked once."""
    bus, devices = Bus(), [Decliner(), Decliner()]
    for device in devices:
        bus.attach(device, 0, 16)
    for count in (1, 2):
        assert bus.read(0, 1) is NotImplemented
        assert bus.write(0, 1, 0) is NotImplemented
        assert [len(device.calls) for device in devices] == [2 * count] * 2


def test_an_unclaimed_address_is_claimed_once_a_device_is_attached() -> None:
    """That nobody claimed an address is not remembered beyond the next registration, and nor is who did."""
    bus = Bus()
    for _ in range(2):
        assert bus.read(0x40, 4) is NotImplemented
        assert bus.write(0x40, 4, 0) is NotImplemented
    region = bus.attach(Recorder(), 0x40, 4)
    assert bus.read(0x40, 4) == 0x42
    assert bus.write(0x40, 4, 0) is None
    region.detach()
    assert bus.read(0x40, 4) is NotImplemented
    assert bus.write(0x40, 4, 0) is NotImplemented


def test_sizes_that_a_region_does_not_take_go_to_the_next() -> None:
    """`sizes` are part of the claim: an access of another size is not this region's."""
    bus, device, other = Bus(), Recorder(1), Recorder(2)
    bus.attach(device, 0, 16, sizes=(4,), priority=1)
    bus.attach(other, 0, 16)
    assert [bus.read(0, size) for size in (1, 2, 4, 8)] == [2, 2, 1, 2]


class Holes(Recorder):
    """Claims even addresses of `[low, low + 0x10)`, by the seed's callback."""

    low = 0x100

    def in_range(self, address: int, size: int) -> bool:
        return address % 2 == 0 and self.low <= address < self.low + 0x10


def test_in_range_is_asked_each_time_and_gets_the_address_as_offset() -> None:
    """A device with `in_range` may have holes and move by itself, and its offset is the address."""
    bus, device, behind = Bus(), Holes(), Recorder(7)
    region = bus.attach(device)
    bus.attach(behind, 0, 0x1000)
    assert (region.base, region.length) == (0, bus.size)
    assert bus.read(0x102, 1) == 0x42
    assert bus.read(0x103, 1) == 7
    assert bus.read(0x200, 1) == 7
    device.low = 0x200
    assert bus.read(0x200, 1) == 0x42
    assert bus.read(0x102, 1) == 7
    assert device.calls == [(0x102, 1), (0x200, 1)]


def test_in_range_stands_in_the_same_order_as_ranges() -> None:
    """A range of higher priority, or of the same and registered earlier, eclipses an `in_range` device."""
    bus, device = Bus(), Holes()
    bus.attach(Recorder(1), 0x100, 2)
    bus.attach(device)
    bus.attach(Recorder(2), 0x104, 2)
    bus.attach(Recorder(3), 0x108, 2, priority=1)
    assert [bus.read(address, 1) for address in (0x100, 0x104, 0x108)] == [1, 0x42, 3]


def test_find_names_the_region_asked_first() -> None:
    """`find` gives the region without asking its device, and None where there is none."""
    bus, device = Bus(), Recorder()
    region = bus.attach(device, 0x10, 0x10)
    assert bus.find(0x10) is region
    assert bus.find(0x1F, 2) is None
    assert device.calls == []


def test_a_negative_address_is_nobodys() -> None:
    """No registration, not even an `in_range` that always says yes, claims below address 0."""

    class Everywhere(Recorder):
        def in_range(self, address: int, size: int) -> bool:
            return True

    bus = Bus()
    bus.attach(Everywhere())
    assert bus.read(-1, 1) is NotImplemented
    assert bus.read(bus.size - 1, 2) is NotImplemented
    assert bus.read(bus.size - 1, 1) == 0x42


def test_any_object_with_read_and_write_is_a_device() -> None:
    """`Device` is not required; a region is named by the device's `name`, else its class, else as told."""

    class Bare:
        def read(self, offset: int, size: int) -> int:
            return 5

        def write(self, offset: int, size: int, value: int) -> None: ...

    bus = Bus()
    assert bus.attach(Bare(), 0, 4).name == "Bare"
    assert bus.attach(Recorder(name="uart0"), 0, 4).name == "uart0"
    assert bus.attach(Recorder(name="uart0"), 0, 4, name="com1").name == "com1"
    assert bus.read(0, 4) == 5


def test_a_plain_device_declines_everything() -> None:
    """The base class's `read` and `write` decline."""
    bus = Bus()
    bus.attach(Device(), 0, 16)
    assert bus.read(0, 4) is NotImplemented
    assert bus.write(0, 4, 0) is NotImplemented


def test_the_devices_length_is_the_default() -> None:
    """A device class that knows its size says so with `length`."""

    class Sized(Recorder):
        length = 0x20

    assert Bus().attach(Sized(), 0x100).length == 0x20


# Moving, enabling, detaching.


class Mover(Recorder):
    """Moves its own region to the address written to it, as a PCI BAR does."""

    region: Region

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        self.region.move(value)


def test_a_device_moves_itself_in_its_own_write() -> None:
    """The write under way is finished at the old base; the next access finds the region at the new one only."""
    bus, device = Bus(), Mover()
    device.region = bus.attach(device, 0x1000, 0x100)
    for base, target in ((0x1000, 0x8000), (0x8000, 0x8010), (0x8010, 0x1000)):
        assert bus.read(base + 4, 4) == 0x42
        assert bus.write(base + 8, 4, target) is None
        assert device.region.base == target
        if not target <= base < target + 0x100:
            assert bus.read(base, 4) is NotImplemented
        assert bus.read(target, 4) == 0x42
    assert device.calls[1] == (8, 4, 0x8000)


def test_a_region_keeps_its_place_in_the_order_when_it_moves() -> None:
    """Moving is no new registration: among equals the earlier one still wins."""
    bus = Bus()
    early = bus.attach(Recorder(1), 0x100, 16)
    bus.attach(Recorder(2), 0, 16)
    early.move(0)
    assert bus.read(0, 1) == 1


def test_enable_and_disable() -> None:
    """A disabled region leaves accesses to the next claimant; it may be moved meanwhile, and comes back."""
    bus = Bus()
    region = bus.attach(Recorder(1), 0, 16)
    bus.attach(Recorder(2), 0, 16)
    region.enable(False)
    region.enable(False)
    assert not region.enabled and region.attached
    assert bus.read(0, 1) == 2
    region.move(0x100)
    assert bus.read(0x100, 1) is NotImplemented
    region.enable()
    assert bus.read(0x100, 1) == 1
    assert bus.read(0, 1) == 2


def test_a_device_that_detaches_itself_is_not_asked_again() -> None:
    """`detach` works from inside the region's own access, and is for good."""
    bus = Bus()

    class Leaver(Recorder):
        def read(self, offset: int, size: int) -> int:
            region.detach()
            return 1

    region = bus.attach(Leaver(), 0, 4)
    assert bus.read(0, 4) == 1
    assert bus.read(0, 4) is NotImplemented
    assert bus.regions == () and not region.attached
    for verb, change in (
        ("move", lambda: region.move(0)),
        ("enable", region.enable),
        ("disable", lambda: region.enable(False)),
        ("detach", region.detach),
    ):
        with pytest.raises(RegistrationError, match=f"cannot {verb} region 'Leaver': it was detached; attach the"):
            change()


def test_a_disabled_region_can_be_detached() -> None:
    """Detaching a region that does not answer removes it from the list."""
    bus = Bus()
    region = bus.attach(Recorder(), 0, 4)
    region.enable(False)
    region.detach()
    assert bus.regions == ()


def test_regions_show_where_they_stand() -> None:
    """`repr` names the region, its range, its bus, and whether it is disabled or detached."""
    bus = Bus(name="mmio")
    region = bus.attach(Recorder(name="uart"), 0x3F8, 8)
    assert repr(region) == "<Region 'uart' 0x3f8+0x8 on 'mmio'>"
    region.enable(False)
    assert repr(region) == "<Region 'uart' 0x3f8+0x8 on 'mmio' disabled>"
    region.detach()
    assert repr(region) == "<Region 'uart' 0x3f8+0x8 on 'mmio' detached>"


def test_regions_are_listed_in_the_order_of_their_registration() -> None:
    """`regions` is a snapshot in that order, whatever moved or left since."""
    bus = Bus()
    regions = [bus.attach(Recorder(), base, 4) for base in (8, 0, 4)]
    regions[0].move(0x100)
    regions[1].detach()
    assert bus.regions == (regions[0], regions[2])


# Capacity and registration errors.


def test_capacity_holds_exactly_that_many() -> None:
    """The seed's array of 6 refused the sixth device by an off-by-one; here six fit, and a place freed is free."""
    bus = Bus(capacity=6, name="seed")
    regions = [bus.attach(Recorder(index), index * 16, 16) for index in range(6)]
    with pytest.raises(BusFullError, match=r"bus 'seed' holds its capacity of 6 regions: no room for 'late'"):
        bus.attach(Recorder(name="late"), 0x1000, 16)
    assert bus.read(0x1000, 1) is NotImplemented
    assert [bus.read(index * 16, 1) for index in range(6)] == list(range(6))
    regions[2].detach()
    bus.attach(Recorder(9), 0x1000, 16)
    assert bus.read(0x1000, 1) == 9


def test_without_a_capacity_a_thousand_devices_fit() -> None:
    """The default is no limit, and each device of many is found."""
    bus = Bus()
    for index in range(1000):
        bus.attach(Recorder(index % 251), index * 0x1000, 0x1000)
    assert all(bus.read(index * 0x1000 + 0xFFC, 4) == index % 251 for index in range(1000))


BAD_REGISTRATIONS: list[tuple[dict[str, Any], str]] = [
    ({"base": 0, "length": 0}, r"region 'Recorder': length=0; give its length in bytes, 1 or more"),
    ({"base": 0, "length": -4}, r"region 'Recorder': length=-4; give"),
    ({"base": 0}, r"region 'Recorder': length=None; give its length"),
    ({"base": -1, "length": 4}, r"region 'Recorder': \[-0x1, 0x3\) does not lie in bus 'pio' of 0x10000 bytes"),
    ({"base": 0xFFFE, "length": 4}, r"region 'Recorder': \[0xfffe, 0x10002\) does not lie in bus 'pio'"),
    ({"base": 0, "length": 6, "implements": (4, 8)}, r"length 0x6 is no multiple of the 4 bytes of its smallest impl"),
    ({"base": 0, "length": 4, "sizes": ()}, r"region 'Recorder': sizes=\(\); use some of \(1, 2, 4, 8\)"),
    ({"base": 0, "length": 4, "sizes": (3,)}, r"sizes=\(3,\); use some of"),
    ({"base": 0, "length": 4, "implements": (4, 16)}, r"implements=\(4, 16\); use some of"),
    ({"base": 0, "length": 4, "endian": "middle"}, r"endian='middle'; use 'little' or 'big'"),
    ({}, r"give a base and a length, or neither and let Recorder define in_range\(address, size\)"),
    ({"length": 16}, r"give a base and a length, or neither"),
]


@pytest.mark.parametrize(("options", "message"), BAD_REGISTRATIONS)
def test_a_registration_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Each names the region, the value and what would be right, and leaves the bus as it was."""
    bus = Bus(0x10000, name="pio")
    with pytest.raises(RegistrationError, match=message):
        bus.attach(Recorder(), **options)
    assert bus.regions == ()
    assert bus.read(0, 4) is NotImplemented


def test_a_device_lacks_a_method() -> None:
    """What has no `read`, or no `write`, is no device; the error says what one defines."""

    class ReadOnly:
        def read(self, offset: int, size: int) -> int:
            return 0

    for device, missing in ((ReadOnly(), "write"), (object(), "read")):
        message = f"has no method '{missing}'; a device defines read\\(offset, size\\) and write\\(offset, size, value"
        with pytest.raises(RegistrationError, match=message):
            Bus().attach(device, 0, 4)


def test_a_class_is_no_device() -> None:
    """Its methods are there, but it is one step short of a device: the error says which."""
    with pytest.raises(TypeError, match=r"^attach Recorder\(\), an instance; got the class Recorder$"):
        Bus().attach(Recorder, 0, 8)


@pytest.mark.parametrize("where", ["device", "attach"])
def test_a_name_is_text(where: str) -> None:
    """Maps and traces are made of names: one that is none is refused before it gets there."""
    device, options = Recorder(), {}
    if where == "device":
        device.name = 5  # type: ignore[assignment]
    else:
        options["name"] = 5
    with pytest.raises(RegistrationError, match=r"^Recorder has the name 5; a region's name is a str$"):
        Bus().attach(device, 0, 8, **options)  # type: ignore[arg-type]


def test_moves_that_cannot_be_change_nothing() -> None:
    """A move off the bus, or of an `in_range` region, is refused and the region answers where it was."""
    bus = Bus(0x10000, name="pio")
    region = bus.attach(Recorder(), 0x10, 0x10)
    with pytest.raises(RegistrationError, match=r"\[0xfff8, 0x10008\) does not lie in bus 'pio'"):
        region.move(0xFFF8)
    assert region.base == 0x10 and bus.read(0x10, 1) == 0x42
    asked = bus.attach(Holes())
    with pytest.raises(RegistrationError, match="region 'Holes' is claimed by in_range: it has no base to move"):
        asked.move(0x100)


# Accesses that are none.


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_access_sizes_are_1_2_4_and_8(size: int) -> None:
    """Another size is the caller's error, not a question to devices."""
    bus, device = Bus(), Recorder()
    bus.attach(device, 0, 64)
    with pytest.raises(ValueError, match=f"access of {size} bytes at 0x4: a bus access has 1, 2, 4 or 8"):
        bus.read(4, size)
    with pytest.raises(ValueError, match=f"access of {size} bytes at 0x4"):
        bus.write(4, size, 0)
    assert device.calls == []


@pytest.mark.parametrize(("size", "value"), [(1, 256), (4, 1 << 32), (8, 1 << 64), (4, -1)])
def test_a_write_must_fit_its_size(size: int, value: int) -> None:
    """A value wider than the access, or negative, does not reach the device."""
    bus, device = Bus(), Recorder()
    bus.attach(device, 0, 64)
    with pytest.raises(ValueError, match=f"value {value:#x} does not fit in {size} bytes"):
        bus.write(0, size, value)
    assert device.calls == []


# What a guest can make the bus keep.


def test_what_is_remembered_is_bounded() -> None:
    """A guest that touches more addresses than are remembered changes nothing but speed."""
    bus, everywhere = Bus(), Recorder()
    bus.attach(everywhere, 0, 1 << 20)
    for address in range(70_000):
        bus.read(address, 1)
        bus.read(0x10_0000 + address, 1)
    assert len(everywhere.calls) == 70_000
    assert max(len(hits) for hits in bus._reads.values()) <= 1 << 16
    bus.attach(Recorder(7), 5, 1, priority=1)
    assert bus.read(5, 1) == 7
    assert bus.read(6, 1) == 0x42
