"""The kernel's virtual machine: its file, and what the kernel offers.

Above `abi.py` and `ioctls.py`; `engine.py` makes one for its machine, `cpu.py` a vCPU in it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.ioctls import call
from iobus.exits import EngineError

DEVICE: Final = "/dev/kvm"

_IDENTITY_MAP: Final = 0xFEFFC000
"""One page for the identity map, then three for the TSS: Intel CPUs that cannot run real mode by themselves need them
somewhere below 4 GiB where the machine has nothing."""
_TSS: Final = 0xFEFFD000

_NEEDED: Final = {
    "KVM_CAP_USER_MEMORY": (ioctls.KVM_CAP_USER_MEMORY, "2.6.24"),
    "KVM_CAP_USER_NMI": (ioctls.KVM_CAP_USER_NMI, "2.6.27"),
    "KVM_CAP_VCPU_EVENTS": (ioctls.KVM_CAP_VCPU_EVENTS, "2.6.33"),
    "KVM_CAP_DEBUGREGS": (ioctls.KVM_CAP_DEBUGREGS, "2.6.35"),
    "KVM_CAP_XSAVE": (ioctls.KVM_CAP_XSAVE, "2.6.36"),
    "KVM_CAP_XCRS": (ioctls.KVM_CAP_XCRS, "2.6.36"),
    "KVM_CAP_IMMEDIATE_EXIT": (ioctls.KVM_CAP_IMMEDIATE_EXIT, "4.12"),
}
"""Without these nothing goes: their numbers, and the first Linux that has them."""


class Vm:
    """One virtual machine of the kernel. Raises `EngineError`, which says what is wrong, where there can be none."""

    def __init__(self) -> None:
        self.system: Final = open_device()
        try:
            _check(self.system)
            self.fd: Final = call(self.system, ioctls.KVM_CREATE_VM)
        except BaseException:
            os.close(self.system)
            raise
        if self.offers(ioctls.KVM_CAP_SET_IDENTITY_MAP_ADDR):
            call(self.fd, ioctls.KVM_SET_IDENTITY_MAP_ADDR, _IDENTITY_MAP.to_bytes(8, "little"))
        if self.offers(ioctls.KVM_CAP_SET_TSS_ADDR):
            _set_tss(self.fd)

    def offers(self, capability: int) -> int:
        """Return what the kernel says of a capability: 0 where it has none."""
        return call(self.fd, ioctls.KVM_CHECK_EXTENSION, capability)

    def enable(self, capability: int, argument: int) -> None:
        """Switch a capability on."""
        call(self.fd, ioctls.KVM_ENABLE_CAP, abi.EnableCap(cap=capability, args=(argument,)))

    def close(self) -> None:
        """Close the files. The kernel lets go of the guest's RAM when the vCPUs are closed too."""
        os.close(self.fd)
        os.close(self.system)


def open_device() -> int:
    """Open the kernel's device. Raises `EngineError`, which says how to get there."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise EngineError(
            f"there is no {DEVICE}: the kernel has no KVM here, or its module (kvm_intel or kvm_amd) is not loaded"
        ) from None
    except PermissionError:
        raise EngineError(f"{DEVICE} may not be opened by this user; {_how_to_get_permission()}") from None
    except OSError as exc:
        raise EngineError(f"{DEVICE} cannot be opened: {exc.strerror}") from None


def _check(system: int) -> None:
    version = call(system, ioctls.KVM_GET_API_VERSION)
    if version != ioctls.KVM_API_VERSION:
        raise EngineError(f"{DEVICE} speaks version {version} of KVM's interface; {ioctls.KVM_API_VERSION} is needed")
    for name, (capability, since) in _NEEDED.items():
        if not call(system, ioctls.KVM_CHECK_EXTENSION, capability):
            raise EngineError(f"the kernel's KVM lacks {name}, which Linux has since {since}")


def _how_to_get_permission() -> str:
    """Say which group to join."""
    import grp

    status = Path(DEVICE).stat()
    if status.st_mode & 0o060 != 0o060:
        return f"its mode is {status.st_mode & 0o777:o}: root must give a group read and write access to it"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"join the group {group!r} (usermod -aG {group} USER, then log in again)"


def _set_tss(fd: int) -> None:
    # By way of the C library: fcntl.ioctl takes no integer argument above 2^31 - 1.
    ioctl = ctypes.CDLL(None, use_errno=True).ioctl
    ioctl.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong
    if ioctl(fd, ioctls.KVM_SET_TSS_ADDR, _TSS) < 0:
        raise EngineError(f"the kernel refuses KVM_SET_TSS_ADDR: {os.strerror(ctypes.get_errno())}")
