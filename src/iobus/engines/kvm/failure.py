"""Words for the exits that a guest cannot go on from.

Above `abi.py` and `ioctls.py`; `cpu.py` puts them into an `EngineError`.
"""

from __future__ import annotations

from typing import Final

from iobus.cpu_registers import Registers
from iobus.engines.kvm import abi, ioctls

_INTERNAL_ERRORS: Final = {
    ioctls.KVM_INTERNAL_ERROR_EMULATION: "an instruction it cannot emulate",
    ioctls.KVM_INTERNAL_ERROR_SIMUL_EX: "exceptions at the same time",
    ioctls.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit in the delivery of an event",
    ioctls.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit of the hardware that it does not know",
}
_SHOWN: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rflags", "cr0", "cr2", "cr3", "cr4", "efer")


def describe(run: abi.Run) -> str:
    """Say what the exit in `run` means."""
    match run.exit_reason:
        case ioctls.KVM_EXIT_INTERNAL_ERROR:
            return _internal_error(run)
        case ioctls.KVM_EXIT_FAIL_ENTRY:
            return f"the CPU refuses to enter the guest, reason {run.fail_entry.hardware_entry_failure_reason:#x}"
        case ioctls.KVM_EXIT_SYSTEM_EVENT:
            return f"KVM's system event {run.system_event.type}"
        case ioctls.KVM_EXIT_UNKNOWN:
            return f"an exit of the hardware that KVM does not know, reason {run.hw.hardware_exit_reason:#x}"
    return f"KVM's exit {run.exit_reason}, which nothing asked for"


def _internal_error(run: abi.Run) -> str:
    error, failure = run.internal, run.emulation_failure
    text = f"KVM's internal error {error.suberror} ({_INTERNAL_ERRORS.get(error.suberror, 'unknown')})"
    if error.suberror != ioctls.KVM_INTERNAL_ERROR_EMULATION:
        data = ", ".join(f"{value:#x}" for value in error.data[: min(error.ndata, 16)])
        return f"{text}, data {data or 'none'}"
    if failure.ndata >= 3 and failure.flags & ioctls.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
        text += f", {bytes(failure.insn_bytes[: min(failure.insn_size, 15)]).hex(' ')}"
    return text


def where(r: Registers) -> str:
    """Show where the CPU was."""
    rest = ", ".join(f"{name} {getattr(r, name):#x}" for name in _SHOWN)
    return f"rip {r.rip:#x}, cs {r.cs.selector:#x} at {r.cs.base:#x}, {rest}"
