"""What iobus raises for its own reasons, and when a device goes wrong. The ground floor; it imports nothing of iobus.

What a guest does wrong is not among these: its faults are in `exits.py`.
"""

from __future__ import annotations

from typing import Final

RAISED: Final = (Exception, SystemExit)
"""What a device's callback may raise and have named as its own. A `sys.exit` in it is its mistake, not the user's wish.

Ctrl-C and the like are not among these: they are somebody else's, and go on up.
"""


class IobusError(Exception):
    """The root of every error iobus raises for its own reasons."""


class RegistrationError(IobusError, ValueError):
    """A registration that cannot be: it names the region, the value and what would be right."""


class BusFullError(RegistrationError):
    """The bus was made with a capacity and it is used up."""


class CallbackError(IobusError):
    """A device raised outside an access, where it was called back; the original exception is `__cause__`."""


class DeviceError(IobusError):
    """A device raised, or answered with something that is no value of the access's size.

    The original exception, where there is one, is `__cause__` with its traceback. The machine is
    whole: it can be inspected, and run on.
    """

    def __init__(
        self, device: object, region: str, address: int, offset: int, size: int, value: int | None, what: str
    ) -> None:
        self.device = device
        self.region = region
        self.address = address
        self.offset = offset
        self.size = size
        self.value = value
        """The value of a write; None for a read."""
        self.is_write = value is not None
        super().__init__(f"{access_text(device, region, address, offset, size, value)}: {what}")


def access_text(device: object, region: str, address: int, offset: int, size: int, value: int | None) -> str:
    """Return an access in words: a write of `value`, or a read where that is None."""
    access = "read" if value is None else f"write of {value:#x}"
    return (
        f"{type(device).__name__} at region {region!r}: {size}-byte {access} at address {address:#x} "
        f"(offset {offset:#x})"
    )
