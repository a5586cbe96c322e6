"""A driver that works, until its device is pulled out: fault injection finds the bug, and shows it mended."""

import struct
from pathlib import Path

import pytest
from sampler import Sampler

from iobus.testing import Guest

pytestmark = pytest.mark.slow

AT = 0xD0000000


def load(guest: Guest, *, careful: bool) -> Sampler:
    """Have the device and its driver in the guest."""
    device = Sampler()
    guest.attach(device, at=AT)
    guest.insmod(guest.build(Path(__file__).with_name("sampler.c")), base=AT, careful=careful)
    return device


def test_the_driver_reads_samples(guest: Guest) -> None:
    """All that wait, in their order."""
    load(guest, careful=False).samples.extend([1, 2, 0xFFFFFFFF])
    assert guest.run("cat /dev/sampler").data == struct.pack("<3I", 1, 2, 0xFFFFFFFF)


def test_a_device_that_is_gone(guest: Guest) -> None:
    """The careful driver: every read of a device that was pulled out is all ones, and the reader gets an error."""
    device = load(guest, careful=True)
    guest.faults.remove(device)
    assert guest.run("cat /dev/sampler").output == "cat: read error: Input/output error\n"


def test_one_bad_count(guest: Guest) -> None:
    """One access that fails is an error to one reader; the next has its samples."""
    device = load(guest, careful=True)
    device.samples.append(7)
    with guest.faults.fail(device, 0, times=1):
        assert guest.run("cat /dev/sampler").status == 1
        assert guest.run("cat /dev/sampler").data == struct.pack("<I", 7)


def test_the_bug(guest: Guest) -> None:
    """The other one believes that 0xFFFFFFFF samples wait, and writes past the end of its memory."""
    device = load(guest, careful=False)
    guest.faults.remove(device)
    with guest.kernel_error(r"BUG: unable to handle page fault[\s\S]*RIP: 0010:sampler_read"):
        guest.run("cat /dev/sampler")
