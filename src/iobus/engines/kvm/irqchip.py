"""Interrupt controllers in the kernel: the LAPICs (`split`), or with the IOAPIC, the 8259 pair and the 8254 (`kernel`).

Above `ioctls.py`; `engine.py` makes one where asked to, and the machine's wiring finds it as `Engine.irqchip`. By
the kernel's Documentation/virt/kvm/api.rst. Everything here is called with the machine lock held, or with nothing
running.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Callable
from typing import Any, Final

from iobus.doorbell import Event
from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.ioctls import call, flexible
from iobus.engines.kvm.vm import Vm
from iobus.exits import EngineError
from iobus.irq import ApicBus, DeliveryMode, Message

PINS: Final = 24
_TIMER_PIN: Final = 2
"""The IOAPIC pin of interrupt line 0, which ACPI's tables tell the guest of; line 2 is the 8259s' own."""
_MSI_BASE: Final = 0xFEE00000
_MSI_LOGICAL, _MSI_ASSERT, _MSI_LEVEL = 1 << 2, 1 << 14, 1 << 15
_HPET_LEGACY: Final = 1
"""KVM_PIT_FLAGS_HPET_LEGACY: the HPET has the 8254's line."""


class KernelApicBus(ApicBus):
    """Messages to the LAPICs in the kernel, as MSIs."""

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self._vm = vm
        self._messages: dict[int, Message] = {}  # what each pin of the IOAPIC sends, where it is not masked
        self._routes: dict[int, Message] = {}  # what the kernel knows of that
        self._events: dict[int, tuple[Event, Callable[[bool], None]]] = {}
        self._taken: set[int] = set()  # the pins whose event the kernel has

    def send(self, message: Message) -> bool:
        if not message.asserted and message.mode is not DeliveryMode.NMI:
            return True  # the end of a level is no interrupt; to the kernel every MSI is one
        low, high, data = _as_msi(message)
        msi = struct.pack("<III20x", low, high, data)
        try:
            fcntl.ioctl(self._vm.fd, ioctls.KVM_SIGNAL_MSI, msi)
        except OSError as exc:
            if exc.errno == errno.EPERM:  # -1: there is no such LAPIC, or none that is on
                return False
            raise EngineError(f"the kernel refuses the interrupt {message}: {exc.strerror}") from exc
        return True

    def route(self, pin: int, message: Message | None) -> None:
        """Tell the kernel of level-triggered entries, whose EOIs it makes exits, and of those with events."""
        self._messages.pop(pin, None)
        if message is not None:
            self._messages[pin] = message
        self._tell(pin)

    def take_event(self, pin: int, event: Event, watch: Callable[[bool], None]) -> None:
        """Have the kernel send the pin's message at a ring, while that is an edge's."""
        self._events[pin] = event, watch
        watch(True)
        self._tell(pin)

    def _tell(self, pin: int) -> None:
        message = self._messages.get(pin)
        take = pin in self._events and message is not None and _is_edge(message)
        if pin in self._taken and not take:  # before its route goes
            self._hand_over(pin, kernel=False)
        wanted = message if take or (message is not None and message.level_triggered) else None
        if self._routes.get(pin) != wanted:
            self._routes.pop(pin, None)
            if wanted is not None:
                self._routes[pin] = wanted
            set_routes(self._vm, [_msi_route(number, route) for number, route in self._routes.items()])
        if take and pin not in self._taken:
            self._hand_over(pin, kernel=True)

    def _hand_over(self, pin: int, *, kernel: bool) -> None:
        """Let the kernel see to an event's rings, or whoever gave it."""
        event, watch = self._events[pin]
        (self._taken.add if kernel else self._taken.discard)(pin)
        if kernel:
            watch(False)
        irqfd(self._vm, pin, event.fileno(), assign=kernel)
        if not kernel:
            watch(True)


class KvmIrqchip:
    """What both placements have: the LAPICs in the kernel."""

    whole: bool

    def __init__(self, vm: Vm, apic_bus: ApicBus) -> None:
        self.vm: Final = vm
        self.apic_bus = apic_bus
        self.boot_lapic: int | None = None
        """The file of the vCPU whose LAPIC firmware prepares."""
        self.edges: list[Callable[[], None]] = []
        """What tells each vCPU of an edge at LINT1."""

    def virtual_wire(self) -> None:
        assert self.boot_lapic is not None
        state = abi.LapicState()
        call(self.boot_lapic, ioctls.KVM_GET_LAPIC, state)
        registers = memoryview(state).cast("B")
        for register, value in _VIRTUAL_WIRE.items():
            struct.pack_into("<I", registers, register, value)
        call(self.boot_lapic, ioctls.KVM_SET_LAPIC, state)

    def lint1s(self, level: bool) -> None:
        """See `irq.Irqchip`."""
        if level:
            for edge in self.edges:
                edge()

    def set_line(self, number: int, level: bool) -> None:
        raise NotImplementedError("the IOAPIC and the 8259 pair are devices")

    def take_event(self, number: int, event: Event, watch: Callable[[bool], None]) -> None:
        """See `irq.Irqchip`."""
        raise NotImplementedError

    def open_pit(self, on: bool) -> None:
        raise NotImplementedError("the 8254 is a device")

    def reset(self) -> None:
        """Return to power-on what is not a vCPU's own."""


class SplitIrqchip(KvmIrqchip):
    """The LAPICs in the kernel; IOAPIC, 8259 and 8254 outside."""

    whole = False

    def __init__(self, vm: Vm) -> None:
        if not vm.offers(ioctls.KVM_CAP_SPLIT_IRQCHIP):
            raise EngineError("this KVM cannot have the LAPICs without the IOAPIC; Linux has that since 4.4")
        vm.enable(ioctls.KVM_CAP_SPLIT_IRQCHIP, PINS)
        self._bus = KernelApicBus(vm)
        super().__init__(vm, self._bus)

    def take_event(self, number: int, event: Event, watch: Callable[[bool], None]) -> None:
        if self.vm.offers(ioctls.KVM_CAP_IRQFD):
            self._bus.take_event(number or _TIMER_PIN, event, watch)
        else:
            watch(True)


class KernelIrqchip(KvmIrqchip):
    """All in the kernel."""

    whole = True

    def __init__(self, vm: Vm) -> None:
        for capability, name in (
            (ioctls.KVM_CAP_IRQCHIP, "interrupt controllers"),
            (ioctls.KVM_CAP_PIT2, "8254"),
            (ioctls.KVM_CAP_IRQ_ROUTING, "interrupt routes"),
        ):
            if not vm.offers(capability):
                raise EngineError(f"this KVM has no {name} in the kernel")
        call(vm.fd, ioctls.KVM_CREATE_IRQCHIP)
        call(vm.fd, ioctls.KVM_CREATE_PIT2, abi.PitConfig(flags=ioctls.KVM_PIT_SPEAKER_DUMMY))
        super().__init__(vm, ApicBusOfAll(vm))
        set_routes(vm, _pc_routes())
        self._power_on = [self._get(chip) for chip in _CHIPS]
        self._pit_power_on = abi.PitState2()
        call(vm.fd, ioctls.KVM_GET_PIT2, self._pit_power_on)
        self._high: set[int] = set()  # the lines that are up
        self._events: dict[int, list[tuple[Event, Callable[[bool], None]]]] = {}

    def set_line(self, number: int, level: bool) -> None:
        # To the kernel all is one source: the end of an irqfd's pulse would take the level away. So long we pulse.
        shared = number in self._events and level != (number in self._high)
        (self._high.add if level else self._high.discard)(number)
        if shared and level:
            self._hand_over(number, kernel=False)
        self._set(number, level)
        if shared and not level:
            self._hand_over(number, kernel=True)

    def _set(self, number: int, level: bool) -> None:
        call(self.vm.fd, ioctls.KVM_IRQ_LINE, struct.pack("<II", number, level))

    def take_event(self, number: int, event: Event, watch: Callable[[bool], None]) -> None:
        if not self.vm.offers(ioctls.KVM_CAP_IRQFD):
            watch(True)
            return
        self._events.setdefault(number, []).append((event, watch))
        if number in self._high:
            watch(True)
        else:
            irqfd(self.vm, number, event.fileno(), assign=True)

    def _hand_over(self, number: int, *, kernel: bool) -> None:
        """Let the kernel see to the rings of a line's events, or whoever gave them."""
        for event, watch in self._events[number]:
            if kernel:
                watch(False)
            irqfd(self.vm, number, event.fileno(), assign=kernel)
            if not kernel:
                watch(True)

    def open_pit(self, on: bool) -> None:
        state = abi.PitState2()
        call(self.vm.fd, ioctls.KVM_GET_PIT2, state)
        state.flags = state.flags & ~_HPET_LEGACY | (0 if on else _HPET_LEGACY)
        call(self.vm.fd, ioctls.KVM_SET_PIT2, state)

    def reset(self) -> None:
        """The levels at the pins stay: they are their sources'."""
        for number in self._high:  # the state set below has requests, of no line, and an edge is what makes one
            self._set(number, False)
        for state in self._power_on:
            call(self.vm.fd, ioctls.KVM_SET_IRQCHIP, state)
        for number in self._high:
            self._set(number, True)
        call(self.vm.fd, ioctls.KVM_SET_PIT2, self._pit_power_on)

    def _get(self, chip: int) -> abi.Irqchip:
        state = abi.Irqchip(chip_id=chip)
        call(self.vm.fd, ioctls.KVM_GET_IRQCHIP, state)
        return state


class ApicBusOfAll(KernelApicBus):
    """As its base, beside an IOAPIC in the kernel: the routes are that one's."""

    def route(self, pin: int, message: Message | None) -> None:
        """Nothing to do."""


_CHIPS: Final = (ioctls.KVM_IRQCHIP_PIC_MASTER, ioctls.KVM_IRQCHIP_PIC_SLAVE, ioctls.KVM_IRQCHIP_IOAPIC)
# SDM vol. 3A, section 11.4.1: SVR, LVT LINT0 and LINT1.
_VIRTUAL_WIRE: Final = {0xF0: 0x1FF, 0x350: 0x700, 0x360: 0x400}


def irqfd(vm: Vm, gsi: int, fd: int, *, assign: bool) -> None:
    """Have each write to the eventfd `fd` make an edge at interrupt `gsi`, or end that."""
    flags = 0 if assign else ioctls.KVM_IRQFD_FLAG_DEASSIGN
    call(vm.fd, ioctls.KVM_IRQFD, abi.Irqfd(fd=fd, gsi=gsi, flags=flags))


def set_routes(vm: Vm, routes: list[tuple[Any, ...]]) -> None:
    """Make these the kernel's table of where interrupts go."""
    head, entries, buffer = flexible(abi.IrqRouting, abi.IrqRoutingEntry, len(routes))
    head.nr = len(routes)
    for entry, (gsi, kind, target) in zip(entries, routes, strict=True):
        entry.gsi, entry.type = gsi, kind
        if kind == ioctls.KVM_IRQ_ROUTING_MSI:
            entry.u.msi = target
        else:
            entry.u.irqchip = target
    call(vm.fd, ioctls.KVM_SET_GSI_ROUTING, buffer)


def _is_edge(message: Message) -> bool:
    return not message.level_triggered and message.mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)


def _msi_route(gsi: int, message: Message) -> tuple[Any, ...]:
    low, high, data = _as_msi(message)
    return gsi, ioctls.KVM_IRQ_ROUTING_MSI, abi.IrqRoutingMsi(address_lo=low, address_hi=high, data=data)


def _pc_routes() -> list[tuple[Any, ...]]:
    """Line n: input n of the 8259 pair and pin n of the IOAPIC, but for the timer's."""
    routes: list[tuple[Any, ...]] = []
    for line in range(PINS):
        if line == _TIMER_PIN:
            continue
        if line < 16:
            chip = ioctls.KVM_IRQCHIP_PIC_MASTER if line < 8 else ioctls.KVM_IRQCHIP_PIC_SLAVE
            pic = abi.IrqRoutingIrqchip(irqchip=chip, pin=line % 8)
            routes.append((line, ioctls.KVM_IRQ_ROUTING_IRQCHIP, pic))
        pin = abi.IrqRoutingIrqchip(irqchip=ioctls.KVM_IRQCHIP_IOAPIC, pin=line or _TIMER_PIN)
        routes.append((line, ioctls.KVM_IRQ_ROUTING_IRQCHIP, pin))
    return routes


def _as_msi(message: Message) -> tuple[int, int, int]:
    """A message as address and data of an MSI (SDM vol. 3A, section 11.11); the high bits are an x2APIC's."""
    destination = message.destination & 0xFFFFFFFF
    low = _MSI_BASE | (destination & 0xFF) << 12 | (_MSI_LOGICAL if message.logical else 0)
    data = message.vector | message.mode << 8 | (_MSI_ASSERT if message.asserted else 0)
    return low, 0, data | (_MSI_LEVEL if message.level_triggered else 0)
