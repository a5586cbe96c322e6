"""The 8259A pair by its data sheet (Intel 231468; AP-59 for what ICW1 resets): one test a statement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.devices.i8259 import PicPair
from iobus.irq import Pin

MASTER_BASE, SLAVE_BASE = 0x30, 0x38


class Pair:
    """A pair, the history of its INTR, and short words for what a guest does."""

    def __init__(self, *, init: bool = True, icw1: int = 0x11, master4: int = 1, slave4: int = 1) -> None:
        self.history: list[bool] = []
        self.pics = PicPair(self.history.append)
        if init:
            self.words(self.pics.master, icw1, MASTER_BASE, 4, master4)
            self.words(self.pics.slave, icw1, SLAVE_BASE, 2, slave4)

    def words(self, chip: object, icw1: int, *rest: int) -> None:
        chip.write(0, 1, icw1)  # type: ignore[attr-defined]
        for word in rest:
            chip.write(1, 1, word)  # type: ignore[attr-defined]

    @property
    def intr(self) -> bool:
        return bool(self.history and self.history[-1])

    def up(self, *lines: int) -> None:
        for line in lines:
            self.pics.set_pin(line, True)

    def down(self, *lines: int) -> None:
        for line in lines:
            self.pics.set_pin(line, False)

    def pulse(self, *lines: int) -> None:
        for line in lines:
            self.up(line)
            self.down(line)

    def ack(self) -> int | None:
        return self.pics.acknowledge()

    def ocw2(self, value: int) -> None:
        self.pics.master.write(0, 1, value)

    def irr(self) -> int:
        self.pics.master.write(0, 1, 0x0A)
        return self.pics.master.read(0, 1)

    def isr(self) -> int:
        self.pics.master.write(0, 1, 0x0B)
        return self.pics.master.read(0, 1)


def test_vector_is_icw2_high_five_bits_and_level() -> None:
    """In 8086 mode T7-T3 come from ICW2 and the low three bits are the level, on either chip."""
    pair = Pair(init=False)
    pair.words(pair.pics.master, 0x11, 0x37, 4, 1)
    pair.words(pair.pics.slave, 0x11, 0x7F, 2, 1)
    pair.up(5, 12)
    assert pair.ack() == 0x78 | 4, "IRQ 12 comes through the master's level 2, above level 5"
    pair.ocw2(0x20)
    assert pair.ack() == 0x30 | 5


def test_no_int_before_initialisation_is_complete() -> None:
    """Before normal operation can begin each 8259A must be brought to a starting point by its ICWs."""
    pair = Pair(init=False)
    pair.up(3)
    assert not pair.intr and pair.ack() is None
    pair.words(pair.pics.master, 0x11, 0x20, 4)
    pair.up(4)
    assert not pair.intr and pair.ack() is None, "ICW4 was announced and has not come"
    pair.pics.master.write(1, 1, 1)
    assert pair.intr and pair.ack() == 0x24, "line 3 rose before ICW1, which resets the edge sense"


def test_single_mode_skips_icw3() -> None:
    """SNGL=1: no ICW3 is issued, and input 2 is an ordinary one."""
    pair = Pair(init=False)
    pair.words(pair.pics.master, 0x13, 0x40, 1)
    pair.words(pair.pics.slave, 0x11, 0x48, 2, 1)
    pair.up(9)
    assert pair.ack() == 0x42


def test_mcs80_mode_gives_the_call_address() -> None:
    """Without ICW4 the mode is MCS-80/85: interval 4 takes A7-A5 from ICW1, interval 8 takes A7-A6."""
    pair = Pair(init=False)
    pair.words(pair.pics.master, 0xA6 | 0x10, 0x12)
    pair.up(5)
    assert pair.ack() == 0xA0 | 5 << 2
    pair.words(pair.pics.master, 0xF2, 0x12)
    pair.down(5)
    pair.up(5)
    assert pair.ack() == 0xC0 | 5 << 3


def test_icw1_resets_what_ap59_lists() -> None:
    """ICW1 clears IMR, ISR, special mask, rotation in AEOI, the edge latches; IRR is read; IR7 is lowest."""
    pair = Pair()
    pair.up(3)
    pair.ack()
    pair.up(1)
    pair.pics.master.write(1, 1, 0x55)
    for word in (0xC3, 0x80, 0x68, 0x0B):
        pair.ocw2(word)
    pair.words(pair.pics.master, 0x11, MASTER_BASE, 4, 1)
    assert pair.pics.master.read(1, 1) == 0
    assert pair.pics.master.read(0, 1) == 0, "IRR, without the edges of before"
    assert pair.isr() == 0
    assert not pair.intr
    pair.pulse(0, 7)
    assert pair.ack() == MASTER_BASE
    pair.ocw2(0x20)
    assert pair.ack() == MASTER_BASE + 7, "no rotation in fully nested mode"


def test_fully_nested_mode() -> None:
    """A level in service inhibits its own and lower ones; a higher one interrupts it."""
    pair = Pair()
    pair.up(4)
    assert pair.ack() == 0x34
    pair.down(4)
    pair.pulse(4, 5)
    assert not pair.intr
    pair.pulse(1)
    assert pair.intr and pair.ack() == 0x31
    assert pair.isr() == 0x12
    pair.ocw2(0x20)
    assert pair.isr() == 0x10, "a non-specific EOI resets the highest level in service"
    pair.ocw2(0x20)
    assert pair.ack() == 0x34 and pair.isr() == 0x10


def test_irr_shows_masked_requests_and_the_read_selection_persists() -> None:
    """IRR holds every level that requests, whatever IMR says; RIS is remembered between reads."""
    pair = Pair()
    pair.pics.master.write(1, 1, 0xFF)
    pair.up(6)
    assert not pair.intr
    assert pair.irr() == 0x40 and pair.pics.master.read(0, 1) == 0x40
    pair.pics.master.write(1, 1, 0xBF)
    assert pair.intr and pair.ack() == 0x36
    assert pair.irr() == 0, "the acknowledge resets the edge"
    assert pair.isr() == 0x40 and pair.pics.master.read(0, 1) == 0x40
    pair.ocw2(0x08)
    assert pair.pics.master.read(0, 1) == 0x40, "RR=0 changes nothing"


def test_edge_triggered_input_needs_a_rising_edge() -> None:
    """An input that stays high can remain so without making another interrupt."""
    pair = Pair()
    pair.up(3)
    pair.ack()
    pair.ocw2(0x20)
    assert not pair.intr
    pair.down(3)
    assert not pair.intr
    pair.up(3)
    assert pair.intr


def test_a_pulse_is_remembered() -> None:
    """`Line.pulse` is one edge: it is latched though the line is low again."""
    pair = Pair()
    pin = Pin(lambda level: pair.pics.set_pin(5, level))
    pin.line().pulse()
    assert pair.intr and pair.irr() == 0x20 and pair.ack() == 0x35


@pytest.mark.parametrize("by", ["ltim", "elcr"])
def test_level_triggered_input(by: str) -> None:
    """A high level requests, again after each EOI, until it is removed."""
    pair = Pair(icw1=0x19 if by == "ltim" else 0x11)
    if by == "elcr":
        pair.pics.elcr.write(0, 1, 0x20)
    pair.up(5)
    assert pair.ack() == 0x35
    assert pair.irr() == 0x20 and not pair.intr
    pair.ocw2(0x20)
    assert pair.intr and pair.ack() == 0x35
    pair.down(5)
    pair.ocw2(0x20)
    assert not pair.intr and pair.irr() == 0


def test_an_input_made_level_triggered_forgets_its_edge() -> None:
    """A level-triggered input requests by its level alone, and keeps nothing for when it is edge-triggered again."""
    pair = Pair()
    pair.pulse(5)
    pair.pics.elcr.write(0, 1, 0x20)
    assert not pair.intr and pair.irr() == 0
    pair.pics.elcr.write(0, 1, 0x00)
    assert not pair.intr and pair.irr() == 0


def test_elcr_bits_that_the_pc_forbids_read_zero() -> None:
    """IRQ 0, 1, 2, 8 and 13 cannot be level-triggered."""
    pair = Pair()
    pair.pics.elcr.write(0, 2, 0xFFFF)
    assert pair.pics.elcr.read(0, 2) == 0xDEF8
    assert pair.pics.elcr.read(0, 1) == 0xF8 and pair.pics.elcr.read(1, 1) == 0xDE


def test_spurious_irq7() -> None:
    """If the input goes low before INTA the CPU gets IR7, whose IS bit is not set."""
    pair = Pair()
    pair.pics.elcr.write(0, 1, 0x20)
    pair.up(5)
    pair.down(5)
    assert not pair.intr
    assert pair.ack() == MASTER_BASE + 7
    assert pair.isr() == 0


def test_spurious_irq15() -> None:
    """The slave's request is gone when the master acknowledges it: IRQ 15, in service at the master alone."""
    pair = Pair()
    pair.up(12)
    pair.pics.slave.write(1, 1, 0xFF)
    assert pair.ack() == SLAVE_BASE + 7
    pair.pics.slave.write(0, 1, 0x0B)
    assert pair.pics.slave.read(0, 1) == 0
    assert pair.isr() == 0x04


def test_cascade_serves_further_slave_levels_after_both_eois() -> None:
    """In the normal nested mode a slave in service is masked out; its next request follows the EOIs."""
    pair = Pair()
    pair.up(12)
    assert pair.ack() == SLAVE_BASE + 4
    pair.up(9)
    assert not pair.intr
    pair.pics.slave.write(0, 1, 0x20)
    assert not pair.intr
    pair.ocw2(0x20)
    assert pair.intr and pair.ack() == SLAVE_BASE + 1


def test_two_slave_requests_at_once_are_both_delivered() -> None:
    """The slave's INT falls at INTA and rises for the second request: an edge for the master."""
    pair = Pair()
    pair.up(14, 15)
    assert pair.ack() == SLAVE_BASE + 6
    pair.pics.slave.write(0, 1, 0x66)
    pair.ocw2(0x62)
    assert pair.intr and pair.ack() == SLAVE_BASE + 7


def test_special_fully_nested_mode() -> None:
    """A slave in service is not locked out: its higher levels interrupt the processor."""
    pair = Pair(master4=0x11)
    pair.up(12)
    assert pair.ack() == SLAVE_BASE + 4
    pair.up(13)
    assert not pair.intr, "lower within the slave"
    pair.up(9)
    assert pair.intr and pair.ack() == SLAVE_BASE + 1
    pair.up(3)
    assert not pair.intr, "lower at the master"
    pair.pics.slave.write(0, 1, 0x20)
    pair.pics.slave.write(0, 1, 0x0B)
    assert pair.pics.slave.read(0, 1) == 0x10, "not zero: software must not yet send the master its EOI"


def test_a_slave_answers_only_to_its_identity() -> None:
    """The slave compares the cascade lines with its ICW3; where nobody answers the bus floats."""
    pair = Pair(init=False)
    pair.words(pair.pics.master, 0x11, 0x30, 4, 1)
    pair.words(pair.pics.slave, 0x11, 0x38, 5, 1)
    pair.up(8)
    assert pair.ack() == 0xFF


def test_automatic_eoi() -> None:
    """AEOI: the IS bit is reset at the end of the acknowledge."""
    pair = Pair(master4=0x03)
    pair.up(3)
    assert pair.ack() == 0x33 and pair.isr() == 0
    pair.pulse(4)
    assert pair.intr and pair.ack() == 0x34


def test_rotate_in_automatic_eoi() -> None:
    """With R the level just served becomes the lowest; without it the priorities stay."""
    pair = Pair(master4=0x03)
    pair.ocw2(0x80)
    pair.pulse(3)
    assert pair.ack() == 0x33
    pair.pulse(3, 4)
    assert pair.ack() == 0x34
    pair.ocw2(0x00)
    assert pair.ack() == 0x33
    pair.pulse(4, 5)
    assert pair.ack() == 0x35, "level 4 was made the lowest; level 3 was served without rotation"


def test_rotate_on_non_specific_eoi() -> None:
    """The data sheet's figure: IR4 and IR6 request; after IR4's rotating EOI IR4 is the lowest, IR5 the highest."""
    pair = Pair()
    pair.pulse(4, 6)
    assert pair.ack() == 0x34
    pair.ocw2(0xA0)
    assert pair.isr() == 0
    assert pair.ack() == 0x36
    pair.pulse(4, 5)
    assert pair.ack() == 0x35, "above level 6 in service"
    assert not pair.intr, "level 4 is the lowest"


def test_rotate_on_specific_eoi_and_set_priority() -> None:
    """The bottom priority level may be programmed, with an EOI for that level or without."""
    pair = Pair()
    pair.ocw2(0xC5)
    pair.pulse(6, 0, 5)
    assert [pair.ack(), pair.irr()] == [0x36, 0x21]
    pair.ocw2(0xE6)
    assert pair.isr() == 0
    pair.pulse(7, 6)
    assert pair.ack() == 0x37


def test_specific_eoi_resets_the_named_level_and_no_operation_none() -> None:
    """SL=1, EOI=1 resets the level in L2-L0; R, SL, EOI = 0, 1, 0 does nothing."""
    pair = Pair()
    pair.up(6)
    pair.ack()
    pair.up(1)
    pair.ack()
    pair.ocw2(0x66)
    assert pair.isr() == 0x02
    pair.ocw2(0x41)
    assert pair.isr() == 0x02


def test_special_mask_mode() -> None:
    """A masked level in service inhibits nothing, and a non-specific EOI does not reset it."""
    pair = Pair()
    pair.up(3)
    pair.ack()
    pair.pulse(6)
    pair.pics.master.write(1, 1, 0x08)
    assert not pair.intr
    pair.ocw2(0x68)
    assert pair.intr and pair.ack() == 0x36
    assert pair.isr() == 0x48
    pair.ocw2(0x20)
    pair.ocw2(0x20)
    assert pair.isr() == 0x08
    pair.ocw2(0x28)
    pair.pulse(7)
    assert pair.intr, "SMM without ESMM is a don't-care"
    pair.ocw2(0x48)
    assert not pair.intr


def test_poll_command() -> None:
    """The read after P=1 is an acknowledge: I and the level; P overrides RR; then reads are as before."""
    pair = Pair()
    pair.ocw2(0x0E)
    assert pair.pics.master.read(0, 1) == 0, "no request"
    pair.up(5)
    pair.ocw2(0x0F)
    assert pair.pics.master.read(1, 1) == 0x85, "any read of the chip"
    assert not pair.intr
    assert pair.pics.master.read(0, 1) == 0x20, "ISR"
    assert pair.pics.master.read(1, 1) == 0


def test_intr_falls_at_each_acknowledge() -> None:
    """INT goes low with INTA, and high again at once for a request that can nest."""
    pair = Pair(master4=0x03)
    pair.pulse(3, 4)
    assert pair.history == [True]
    pair.ack()
    assert pair.history == [True, False, True]
    pair.ack()
    assert pair.history == [True, False, True, False]


def test_two_byte_accesses_are_two_of_one_byte() -> None:
    """A 16-bit write gives the low byte to the even port first; a read is put together the same way."""
    pair = Pair(init=False)
    master = pair.pics.master
    master.write(0, 2, 0x30_13)
    master.write(1, 1, 1)
    master.write(0, 2, 0xA5_0B)
    pair.up(1)
    pair.ack()
    assert master.read(0, 2) == 0xA5_02


def test_line_2_is_not_led_out() -> None:
    """The slave's output takes input 2: nothing else drives it. Lines beyond 15 do not exist."""
    pair = Pair()
    pair.up(2)
    assert pair.irr() == 0
    with pytest.raises(ValueError, match="interrupt line 16"):
        pair.pics.set_pin(16, True)


def test_reset_asks_for_initialisation_and_keeps_the_inputs() -> None:
    """After a reset nothing is latched or masked and INT is low; the sources still drive their levels."""
    pair = Pair()
    pair.up(3)
    pair.pics.elcr.write(0, 2, 0xFFFF)
    pair.pics.reset()
    assert not pair.intr and pair.pics.elcr.read(0, 2) == 0 and pair.ack() is None
    pair.words(pair.pics.master, 0x19, 0x20, 4, 1)
    assert pair.intr and pair.ack() == 0x23


def test_restore_drives_intr_and_keeps_the_cascade() -> None:
    """A fresh pair that takes the state of one with pending requests behaves as that one."""
    pair = Pair()
    pair.up(10)
    other = Pair(init=False)
    other.pics.restore(pair.pics.save())
    assert other.intr and other.pics.save() == pair.pics.save()
    assert other.ack() == SLAVE_BASE + 2
    assert pair.pics.save()["slave"]["isr"] == 0, "nothing is shared"


ACCESS = st.tuples(
    st.sampled_from(["master", "slave", "elcr"]),
    st.integers(0, 7),
    st.sampled_from([1, 2, 4, 8]),
    st.none() | st.integers(0, 2**64 - 1),
)
PIN = st.tuples(st.just("pin"), st.integers(0, 15), st.just(1), st.integers(0, 1))
ACK = st.tuples(st.just("ack"), st.just(0), st.just(1), st.none())
INIT = st.tuples(st.just("init"), st.sampled_from([0x11, 0x13, 0x19, 0x10]), st.just(1), st.integers(0, 31))


@given(st.lists(st.one_of(ACCESS, PIN, PIN, ACK, INIT), max_size=40))
def test_fuzz(steps: list[tuple[str, int, int, int | None]]) -> None:
    """Whatever a guest does: values fit, INTR is what was told last, and a restored pair has the same state."""
    pair = Pair()
    for what, where, size, value in steps:
        if what == "pin":
            pair.pics.set_pin(where, bool(value))
        elif what == "ack":
            vector = pair.ack()
            assert vector is None or 0 <= vector < 256
        elif what == "init":
            assert value is not None
            pair.words(pair.pics.master, where, 0x20, 4, value)
        elif value is None:
            assert 0 <= getattr(pair.pics, what).read(where, size) < 1 << 8 * size
        else:
            getattr(pair.pics, what).write(where, size, value & (1 << 8 * size) - 1)
    saved = pair.pics.save()
    other = Pair(init=False)
    other.pics.restore(saved)
    assert other.pics.save() == saved
    assert other.intr == pair.intr
