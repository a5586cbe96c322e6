"""The engine on the kernel's KVM: guest code runs on the CPU's own hardware virtualisation.

`KvmEngine` is what a `Machine` is given. It owns the kernel's virtual machine and what its vCPUs share, and chooses
by where the interrupt controllers are to be: in Python (`user`), the LAPICs in the kernel (`split`), all in the
kernel (`kernel`).
"""

from __future__ import annotations

import ctypes
import threading
from typing import Final

from iobus.engines.kvm import abi, cpuid, ioctls
from iobus.engines.kvm.cpu import KvmCpu
from iobus.engines.kvm.cpu_lapic import LapicCpu
from iobus.engines.kvm.cpu_user import UserCpu
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.irqchip import KernelIrqchip, KvmIrqchip, SplitIrqchip
from iobus.engines.kvm.ram import Ram
from iobus.engines.kvm.shortcuts import Shortcuts
from iobus.engines.kvm.sleepers import Sleepers
from iobus.engines.kvm.vm import Vm
from iobus.engines.names import IRQCHIPS, Placement
from iobus.exits import EngineError
from iobus.irq import Irqchip
from iobus.machine import Machine
from iobus.memory import Slot
from iobus.vcpu import VCPU

_IA32_APIC_BASE, _IA32_TSC_DEADLINE = 0x1B, 0x6E0


class KvmEngine:
    """Executes guest code with `/dev/kvm`. One engine serves one machine. `irqchip` is one of `names.IRQCHIPS`.

    Raises `EngineError`, which says what to do, where KVM cannot be used.
    """

    name = "kvm"

    def __init__(self, irqchip: Placement = "user") -> None:
        if irqchip not in IRQCHIPS:
            raise EngineError(f"there is no irqchip {irqchip!r}; use {', '.join(IRQCHIPS)}")
        self.vm: Final = Vm()
        self.cpuid: Final = cpuid.supported(self.vm.system)
        self._chip: KvmIrqchip | None = None
        if irqchip != "user":
            self._chip = KernelIrqchip(self.vm) if irqchip == "kernel" else SplitIrqchip(self.vm)
        self.irqchip: Irqchip | None = self._chip
        self.sleepers: Final = Sleepers()
        self.traps_msrs: Final = self._chip is not None or self._trap_msrs()
        """Whether the MSRs of a LAPIC in Python reach it; Linux before 5.10 does not offer that."""
        self.xsave_size: Final = max(self.vm.offers(ioctls.KVM_CAP_XSAVE2), ctypes.sizeof(abi.Xsave))
        """Of a vCPU's FPU and vector state, in bytes."""
        self._machine: Machine | None = None
        self._cpus: list[KvmCpu] = []
        self._closed = False

    def attach(self, machine: Machine) -> None:
        """Serve `machine`."""
        if self._machine is not None:
            raise EngineError("a KvmEngine serves one machine: make another for the next")
        most = self.vm.offers(ioctls.KVM_CAP_MAX_VCPUS)
        if len(machine.vcpus) > most:
            raise EngineError(f"this KVM runs at most {most} vCPUs, not {len(machine.vcpus)}")
        self._machine = machine
        self._ram = Ram(self.vm, machine)
        self.shortcuts = Shortcuts(self.vm, machine, lambda: any(cpu.running for cpu in self._cpus), self._wake)
        self._mapping = threading.Lock()  # one thread at a time holds the vCPUs
        machine.memory.large_pages = True
        machine.memory.on_protect = self._protected
        for vcpu in machine.vcpus:
            vcpu.mmio.on_change(self._own_devices_changed)

    def executor(self, vcpu: VCPU) -> KvmCpu:
        """Return what runs `vcpu`."""
        cpu: KvmCpu
        if self._chip is None:
            cpu = UserCpu(self, vcpu)
        else:
            cpu = LapicCpu(self, vcpu, self._chip.apic_bus)
            self._chip.boot_lapic = self._chip.boot_lapic or cpu.fd
            self._chip.edges.append(cpu.lint1)
        self._cpus.append(cpu)
        return cpu

    def flush(self) -> None:
        """Have coalesced writes reach their devices."""
        self.shortcuts.flush()

    def reset(self) -> None:
        """Return what INIT leaves as it is to power-on."""
        self.shortcuts.drop()
        for cpu in self._cpus:
            cpu.power_on()
        if self._chip is not None:
            self._chip.reset()

    def close(self) -> None:
        """Free the kernel's virtual machine."""
        if self._closed:
            return
        self._closed = True
        self.sleepers.close()
        if self._machine is not None:
            self.shortcuts.close()
        for cpu in self._cpus:
            cpu.close()
        self.vm.close()

    def map_memory(self) -> None:
        """Give the guest the memory that the machine has, with no vCPU in guest code meanwhile."""
        if self._ram.is_current():
            return
        with self._mapping:
            if self._ram.is_current():
                return
            for cpu in self._cpus:
                cpu.hold()
            try:
                self._ram.sync()
            finally:
                for cpu in self._cpus:
                    cpu.release()

    def _protected(self, slot: Slot, readonly: bool) -> None:
        self.map_memory()

    def _own_devices_changed(self) -> None:
        # Called with the bus's lock held: it is looked at by the vCPU, before it goes on.
        self._ram.stale = True
        self._wake()

    def _wake(self) -> None:
        for cpu in self._cpus:
            cpu.attend_soon()

    def _trap_msrs(self) -> bool:
        """Have accesses to the LAPIC's MSRs, and to those that nobody has, come out as exits."""
        vm = self.vm
        if not vm.offers(ioctls.KVM_CAP_X86_USER_SPACE_MSR) or not vm.offers(ioctls.KVM_CAP_X86_MSR_FILTER):
            return False
        # x2APIC's cannot be filtered: without a LAPIC in the kernel they are unknown to it, or invalid.
        vm.enable(
            ioctls.KVM_CAP_X86_USER_SPACE_MSR,
            ioctls.KVM_MSR_EXIT_REASON_INVAL | ioctls.KVM_MSR_EXIT_REASON_UNKNOWN | ioctls.KVM_MSR_EXIT_REASON_FILTER,
        )
        denied = ctypes.create_string_buffer(8)  # a bit for each MSR, 0 for "ask"
        both = ioctls.KVM_MSR_FILTER_READ | ioctls.KVM_MSR_FILTER_WRITE
        filter = abi.MsrFilter()
        for range_, msr in zip(filter.ranges, (_IA32_APIC_BASE, _IA32_TSC_DEADLINE), strict=False):
            range_.flags, range_.nmsrs, range_.base, range_.bitmap = both, 1, msr, ctypes.addressof(denied)
        call(vm.fd, ioctls.KVM_X86_SET_MSR_FILTER, filter)
        return True
