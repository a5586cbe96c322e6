"""Random banks beside the plain reference of `reference.py`: the same accesses, the same bits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from random_maps import maps
from registers_reference import Bit, Reference

from iobus.registers import Access, RegisterBank, Values
from iobus.registers.entries import RegisterMap, placed
from iobus.registers.runtime import build


def reference(bank: RegisterMap) -> Reference:
    bits: dict[int, Bit] = {}
    for item in placed(bank.members):
        kinds: dict[int, Access] = {}
        for mask, access in item.register.pieces():
            kinds.update({at: access for at in range(item.register.width) if mask >> at & 1})
        for at in range(item.register.width):
            bits[8 * item.offset + at] = Bit(kinds[at], item.register.reset >> at & 1)
    return Reference(bits, bank.unmapped)


def held(bank: RegisterMap, model: Reference) -> dict[str, int]:
    return {
        item.name: sum(model.bits[8 * item.offset + at].value << at for at in range(item.register.width))
        for item in placed(bank.members)
    }


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_access_of_any_bank_is_what_its_bits_say(data: st.DataObject) -> None:
    """Aligned or not, of any size: reads, writes and what they leave behind equal the reference's, bit for bit.

    On the way a device that is restored from what this one saved goes on as this one does.
    """
    bank = data.draw(maps())
    device: RegisterBank = build(bank)()
    model = reference(bank)
    registers = held(bank, model)
    assert {name: device.save()["registers"][name] for name in registers} == registers
    for _ in range(data.draw(st.integers(1, 12))):
        size = data.draw(st.sampled_from((1, 2, 4, 8)))
        if size > bank.length:
            continue
        offset = data.draw(st.integers(0, bank.length - size))
        if data.draw(st.booleans()):
            value = data.draw(st.integers(0, (1 << 8 * size) - 1))
            taken = device.write(offset, size, value) is not NotImplemented
            assert taken == model.write(offset, size, value)
        else:
            shown = device.read(offset, size)
            assert (None if shown is NotImplemented else shown) == model.read(offset, size)
        registers = held(bank, model)
        assert {name: device.save()["registers"][name] for name in registers} == registers
        if data.draw(st.booleans()):
            other = build(bank)()
            other.restore(device.save())
            assert other.state == device.state
            device = other
    device.reset()
    assert device.save() == build(bank)().save()


class Speed(Values):
    SLOW = 0
    FAST = 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_describe_says_adds_up_to_the_access(data: st.DataObject) -> None:
    """The parts of the description, put together, are the value; the fields of a part are its register's."""
    bank = data.draw(maps())
    size = data.draw(st.sampled_from((1, 2, 4, 8)))
    if size > bank.length:
        return
    offset = data.draw(st.integers(0, bank.length - size))
    value = data.draw(st.integers(0, (1 << 8 * size) - 1))
    offsets = {item.name: item.offset for item in placed(bank.members)}
    entries = {item.name: item.register for item in placed(bank.members)}
    together = 0
    for part in build(bank).describe(offset, size, value, data.draw(st.booleans())):
        if part.register:
            shift = 8 * (offsets[part.register] - offset)
            together |= part.value << shift if shift >= 0 else part.value >> -shift
            bits = {field.name: field for field in entries[part.register].fields}
            for field in part.fields:
                if field.name in bits:
                    entry = bits[field.name]
                    assert field.value == (part.value & entry.mask) >> entry.lsb
        else:
            together |= part.value
    assert together == value
