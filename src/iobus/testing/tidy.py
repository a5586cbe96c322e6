"""One guest for many tests: what a test left behind is cleared away, or is why the next test gets a new guest.

Stands on `guest.py`; the plugin's fixture `guest` is made of it. After a test the processes are killed that it started,
its modules unloaded, its mounts and files in /tmp gone, its devices, their interrupt lines and timers off the machine.
The root file system is read-only throughout. What cannot be cleared, and a kernel that complained, ends the guest.
"""

from __future__ import annotations

import re
import warnings
from typing import Final

from iobus.bus import DeviceError, IobusError
from iobus.errors import CallbackError
from iobus.testing.guest import Guest
from iobus.testing.kernel_log import interrupt_counts, trouble

_SECONDS: Final = 60.0

# /proc/modules has the newest first, and so each after those that use it; likewise mounts from the end. A process that
# was killed in the middle of a driver's work ends when that does.
_CLEAR: Final = """\
cd /
kill -9 -1
again() { for try in 1 2 3 4 5 6 7 8 9 10; do "$@" 2>/dev/null && return; sleep 0.3; done; false; }
for module in $(cut -d' ' -f1 /proc/modules); do
    again rmmod "$module" || echo "the module $module, which does not unload"
done
cut -d' ' -f2 /proc/mounts | tac | while read -r place; do
    case $place in /|/proc|/sys|/dev|/run|/tmp) ;; *) again umount "$place" || echo "a mount at $place" ;; esac
done
find /dev | grep -vxF -f /run/dev | while read -r node; do rm -rf "$node"; done
for file in /run/* /run/.[!.]*; do
    case $file in /run/out|/run/script|/run/dev) ;; *) rm -rf "$file" ;; esac
done
grep -q '^rootfs / rootfs ro' /proc/mounts || echo "a root file system that can be written"
dmesg -n 8
again umount /tmp && mount -t tmpfs tmp /tmp || echo "files in /tmp that are in use"
echo "tainted $(cat /proc/sys/kernel/tainted)"
cat /proc/interrupts
"""


class GuestWarning(UserWarning):
    """A test left the guest in a state that another test should not find: the next one gets a new guest."""


class Guests:
    """The guests of one session, one for each engine, each booted when it is first asked for and when it is gone."""

    def __init__(self) -> None:
        self._guests: dict[str, _Kept] = {}
        self.boots = 0
        """How many there have been."""

    def enter(self, engine: str, test: str) -> Guest:
        """Return a guest that is as it was after its boot, for `test`. Raises `GuestError`, `GuestUnavailableError`."""
        kept = self._guests.get(engine)
        if kept is not None and kept.guest.dead:
            kept.guest.close()
            kept = None
        if kept is None:
            kept = self._guests[engine] = _Kept(engine)
            self.boots += 1
        kept.test = test
        kept.guest.new_test()
        kept.guest.watch(True)
        return kept.guest

    def leave(self, guest: Guest) -> None:
        """Clear away what the test left; what cannot be is told by a `GuestWarning`."""
        for kept in self._guests.values():
            if kept.guest is guest:
                kept.clear()

    def close(self) -> None:
        """End all."""
        for kept in self._guests.values():
            kept.guest.close()
        self._guests.clear()


class _Kept:
    """A guest, and what it had when it was booted."""

    def __init__(self, engine: str) -> None:
        guest = self.guest = Guest(engine)
        self.test = ""
        try:
            guest.boot()
            tainted = guest.run("cat /proc/sys/kernel/tainted", check=True).output
        except BaseException:
            guest.close()
            raise
        guest.new_test()
        self._tainted: Final = int(tainted)  # by its boot
        self._lines: Final = guest.pc.lines()
        self._timers: Final = set(guest.machine.clock.timers)

    def clear(self) -> None:
        guest = self.guest
        if not guest.machine.hung:
            guest.faults.end()
        left = [] if guest.dead else self._clear_guest()
        guest.watch(False)
        if guest.machine.hung:  # its lock is not to be had
            guest.regions.clear()
        else:
            self._clear_machine()
        if left:
            guest.give_up(f"{self.test} left {', '.join(left)}")
        if guest.dead and not guest.expected:
            warnings.warn(
                GuestWarning(f"the next test with a guest boots a new one, for after {self.test}: {guest.dead}"),
                stacklevel=2,
            )

    def _clear_machine(self) -> None:
        """Take what the test put there off the machine."""
        guest = self.guest
        with guest.machine.lock:
            for region in guest.regions:
                if region.attached:
                    region.detach()
            guest.regions.clear()
            for pin in guest.pc.pins:
                for line in [line for line in pin.lines if line not in self._lines]:
                    pin.remove(line)
            for timer in set(guest.machine.clock.timers) - self._timers:
                timer.close()

    def _clear_guest(self) -> list[str]:
        """Clear away what is in the guest; return what is left there. The devices are still at their places."""
        guest = self.guest
        guest.abandon()
        for _ in range(10):  # a device may raise in each of the accesses that a driver makes to take its leave
            try:
                guest.unplug()
                said = guest.run(_CLEAR, timeout=_SECONDS).output
                break
            except (DeviceError, CallbackError):
                continue
            except IobusError as exc:
                guest.give_up(str(exc).splitlines()[0])
                return []
        else:
            return ["devices that raise at each access"]
        found = re.fullmatch(r"((?:.*\n)*?)tainted (\d+)\n((?:.*\n)*)", said)
        if found is None:
            return [f"a shell that does not do as it is told: {said!r}"]
        guest.counted = interrupt_counts(found[3])
        return [*found[1].splitlines(), *trouble(int(found[2]) & ~self._tainted)]
