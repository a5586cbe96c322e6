"""Devices that come and go while Linux runs, by ACPI: a table is loaded for each, and its driver finds it as at boot.

Beside `guest.py`. The guest's DSDT has a Generic Event Device (ACPI specification 6.5, section 5.6.9), whose interrupt
makes Linux load the table that lies in the agent's window. A table is never unloaded: a device that is gone is taken
from its driver and kept from others by `driver_override`, and is the one that is found when an equal one comes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from iobus.pc import acpi, aml

IRQ: Final = 19
"""The interrupt of the event device."""


class Slot(NamedTuple):
    """What makes devices equal to Linux."""

    hid: str
    base: int
    length: int
    gsis: tuple[int, ...]

    @property
    def is_edge(self) -> bool:
        """Whether its interrupts are edge-triggered."""
        return self.hid == acpi.GENERIC_EVENT_DEVICE


def event_device(table: int) -> acpi.AcpiDevice:
    """Return the device for the DSDT that loads the table at guest physical address `table`."""
    region = aml.memory_region("TBLR", table, 0x1000)
    return acpi.AcpiDevice(
        "HOTP", acpi.GENERIC_EVENT_DEVICE, (aml.interrupt(IRQ),), 0xFFFF,
        (region, aml.method("_EVT", 1, aml.load("TBLR"))),
    )  # fmt: skip


def device_of(number: int, slot: Slot) -> acpi.AcpiDevice:
    """Return the `number`th device."""
    return acpi.user_device(number, *slot)


FIND: Final = """\
for try in $(seq 100); do
    for path in /sys/bus/acpi/devices/*/path; do
        read -r name <$path
        node=${{path%/path}}/physical_node
        if [ "$name" = '\\_SB_.U{number:03X}' ] && [ -e $node/driver_override ]; then
            basename "$(readlink -f $node)"
            exit
        fi
    done
    sleep 0.02
done
exit 1
"""
"""Prints the name of the platform device of the `number`th device, as soon as there is one."""

PLUG: Final = """\
cd /sys/bus/platform/devices/{name}
echo >driver_override
echo {name} >/sys/bus/platform/drivers_probe
"""

UNPLUG: Final = """\
cd /sys/bus/platform/devices/{name}
[ ! -e driver ] || echo {name} >driver/unbind
echo unplugged >driver_override
"""
