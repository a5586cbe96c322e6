"""What tests leave in a guest: cleared away, or named, and then the next test has a new guest. As a project has it."""

from __future__ import annotations

import re

import pytest

from iobus.testing.kernel_log import complaints, trouble

LEAVING = """
import threading
import pytest
from iobus.bus import Device
from iobus.testing import GuestError
from iobus.testing.watchdog import DeviceHungError

AT = 0xD0000000
booted = []

class Loud(Device):
    length = 0x100

    def __init__(self, loud=True):
        self.loud = loud

    def connect(self, pc):
        self.clock, self.line = pc.machine.clock, pc.irq(11, "loud")
        self.timer = self.clock.timer(self.tick, "loud")
        if self.loud:
            self.tick()

    def tick(self):
        self.line.set(not self.line.level)
        self.timer.arm(self.clock.now() + 10_000_000)

    def read(self, offset, size):
        if offset == 8:
            raise KeyError("left")
        if offset == 12:
            threading.Event().wait()
        return 5

    def write(self, offset, size, value): ...

@pytest.fixture
def boots(_iobus_guests):
    return lambda: _iobus_guests.boots

def test_leaves_all(guest):
    guest.attach(Loud(), at=AT)
    guest.modprobe("null_blk")
    guest.run("mknod /dev/mine c 1 3; touch /run/mine; dmesg -n 1")
    guest.run("touch /tmp/file; sleep 1000 & mkdir /tmp/a; mount -t tmpfs mine /tmp/a; cd /tmp/a; sleep 1000 &")
    with pytest.raises(Exception, match="left"):
        guest.run(f"devmem {AT + 8:#x} 32; sleep 1000")

def test_finds_nothing(guest, boots):
    assert guest.run("ls /dev/mine /run/mine").status == 1
    assert guest.run("cut -f1 /proc/sys/kernel/printk").output == "8\\n"
    assert guest.run("ls /tmp; cat /proc/modules; ps | grep -c '[s]leep'").output == "0\\n"
    assert guest.run(f"mount | grep -c mine; devmem {AT:#x} 32").output == "0\\n0xFFFFFFFF\\n"
    assert not guest.pc.pins[11].level
    before = guest.pc.pins[11].count
    guest.run("sleep 0.1")
    assert guest.pc.pins[11].count == before and guest.accesses[0].region is None
    assert guest.pc.pins[11].lines == [] or guest.pc.pins[11].sources == ["hpet2"]
    assert boots() == 1

def test_complains(guest):
    guest.attach(Loud(loud=False), at=AT)
    guest.run("devmem 0xD0000004 32")
    guest.run("echo 'WARNING: CPU: 0 PID: 1 at the test' >/dev/kmsg")

def test_keeps_a_module(guest):
    guest.modprobe("loop")
    guest.run("truncate -s 64K /run/file && losetup /dev/loop0 /run/file", check=True)

def test_has_a_new_guest(guest, boots):
    assert boots() == 2
    assert guest.run("cat /proc/modules").output == ""

def test_has_no_compiler(guest, monkeypatch, tmp_path):
    (tmp_path / "mine.c").write_text("int x;")
    monkeypatch.setenv("PATH", "/nowhere")
    guest.build(tmp_path / "mine.c")

def test_panics(guest):
    guest.run("echo c >/proc/sysrq-trigger")

def test_has_a_newer_guest(guest, boots):
    assert boots() == 3
    guest.attach(Loud(), at=AT)
    guest.time_limit = 0.2
    with pytest.raises(DeviceHungError, match=r"0xd000000c: no answer .* at test_it.py:\\d+ in read; nothing ends"):
        guest.run(f"devmem {AT + 12:#x} 32")

def test_expects_a_panic(guest, boots):
    assert boots() == 4
    with guest.kernel_error("Kernel panic.*sysrq triggered crash"):
        guest.run("echo c >/proc/sysrq-trigger")
        pytest.fail("it goes on behind the panic")
    with pytest.raises(GuestError, match="^the guest is no more: its kernel panicked$"):
        guest.run("true")
"""


@pytest.mark.slow
def test_what_tests_leave(pytester: pytest.Pytester) -> None:
    """Files, processes, mounts, modules and devices are gone; a complaint fails its own test; the rest is named."""
    pytester.makepyfile(test_it=LEAVING)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, failed=2, skipped=1, warnings=3)
    result.stdout.fnmatch_lines(
        [
            "E *KernelError: the guest's kernel complained:",
            "E *WARNING: CPU: 0 PID: 1 at the test",
            "*- iobus: the last accesses -*",
            "* r vcpu0 mmio 0xd0000004 4 0x00000005 Loud",
            "*- iobus: the guest's console -*",
            "*WARNING: CPU: 0 PID: 1 at the test",
            "E *PanicError: the guest is no more: its kernel panicked:",
            "E *Kernel panic - not syncing: sysrq triggered crash",
            "*GuestWarning: the next test with a guest boots a new one, for after test_it.py::test_keeps_a_module: "
            "test_it.py::test_keeps_a_module left the module loop, which does not unload",
            "*GuestWarning: *test_it.py::test_panics: its kernel panicked",
            "*GuestWarning: *test_it.py::test_has_a_newer_guest: Loud at address 0xd000000c: no answer after 0.2 s*",
        ]
    )
    assert not re.search(r"guest\.py:\d+: \w+Error", result.stdout.str())  # the test's own line is the last shown


OOPS = """\
[    5.1] copier: loaded
[    6.10] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    6.11] Call Trace:
[    6.12] ---[ end trace 0000000000000000 ]---
[    7.0] fine again
[    8.0] ------------[ cut here ]------------
[    8.1] WARNING: CPU: 0 PID: 100 at drivers/x.c:1 x+0x1/0x2 [x]
[    8.2] ---[ end trace 0000000000000000 ]---
[    9.0] irq 10: nobody cared (try booting with the "irqpoll" option)
[    9.1] Disabling IRQ #10
"""


def test_complaints_are_cut_out_whole() -> None:
    """Each from its first line to its last, and nothing between them."""
    found = complaints(OOPS)
    assert [(text.splitlines()[0].split("] ")[1][:12], len(text.splitlines())) for text in found] == [
        ("BUG: kernel ", 3), ("------------", 3), ("irq 10: nobo", 2),
    ]  # fmt: skip
    assert complaints("[    1.0] DEBUG: all is well\n[    1.1] no WARNING: here\n") == []


def test_taints_that_matter() -> None:
    """A module that is not the kernel's own (P, F, O, E) is no trouble; an oops (D) and a warning (W) are."""
    assert trouble(1 << 0 | 1 << 1 | 1 << 12 | 1 << 13) == []
    assert trouble(1 << 7 | 1 << 9 | 1 << 12) == ["an oops", "a warning"]
