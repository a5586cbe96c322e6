"""Guests that others wrote, unmodified, as Debian has them: each until a line of its own says how far it came."""

import gzip
import lzma
import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import IOBUS

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd

pytestmark = pytest.mark.slow

SECONDS = 240


def fetched(get: Callable[[], Path]) -> Path:
    """A guest's file, or a skip."""
    try:
        return get()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")


def package(name: str, file: str, architecture: str = "amd64") -> Path:
    (path,) = fetched(lambda: debian.fetch(name, architecture)).glob(file)
    return path


def shown_until(marker: str, *arguments: object) -> str:
    """Run the command until `marker`, a regular expression, is in its output; return the output up to then."""
    process = subprocess.Popen(
        [*IOBUS, "run", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    shown, end = b"", time.monotonic() + SECONDS
    try:
        while not re.search(marker.encode(), shown):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(process.stdout.fileno(), 65536) if ready else b""
            assert data, f"{marker!r} did not come; the last that came is {shown[-3000:].decode(errors='replace')}"
            shown += data
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(30)
    return shown.decode(errors="replace")


def ended(*arguments: object) -> tuple[int, str]:
    """Run the command to the guest's own end; return its status and its output, lines ending as here."""
    done = subprocess.run(
        [*IOBUS, "run", *map(str, arguments), "--timeout", str(SECONDS)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace").replace("\r\n", "\n")


@pytest.mark.parametrize(("image", "cpus"), [("bios.bin", 1), ("bios-256k.bin", 1), ("bios-256k.bin", 2)])
def test_seabios_finds_the_machine_and_no_boot_device(image: str, cpus: int) -> None:
    """From the reset vector: fw_cfg by DMA, the memory map, PCI, CPUs, ACPI tables, serial port, keyboard."""
    rom = package("seabios", f"usr/share/seabios/{image}")
    log = shown_until(r"No bootable device\.\n", "--firmware", rom, "--memory", "5G", "--cpus", cpus)
    for line in (
        "Found QEMU fw_cfg",
        "QEMU fw_cfg DMA interface supported",
        "qemu/e820: addr 0x0000000000000000 len 0x00000000c0000000 [RAM]",
        "qemu/e820: addr 0x0000000100000000 len 0x0000000080000000 [RAM]",
        "Found 1 PCI devices (max PCI bus is 00)",
        "PCI: init bdf=00:00.0 id=8086:1237",
        f"Found {cpus} cpu(s) max supported {cpus} cpu(s)",
        "Found 1 serial ports",
        "PS2 keyboard initialized",
        "All threads complete.",
    ):
        assert f"{line}\n" in log, f"{line} is not in {log}"
    assert "WARNING" not in log and "Unable" not in log


@pytest.mark.parametrize("architecture", ["amd64", "i386"])
def test_gnu_mach_reaches_its_bootstrap(architecture: str) -> None:
    """Multiboot 1, an ELF-64 image and an ELF-32 one: memory map, time of day, and then there is no bootstrap."""
    image = package("gnumach-image-1.8-486", "boot/gnumach-1.8-486.gz", architecture)
    log = shown_until("No bootstrap code loaded with the kernel!", image, "--append", "console=com0")
    assert "GNU Mach 1.8" in log
    assert "biosmem: 000000000000100000:000000000010000000, available" in log
    assert re.search(r"RTC time is 20\d\d-", log)


@pytest.mark.parametrize("image", ["memtest86+x64.bin", "memtest86+ia32.bin"])
def test_memtest86_completes_a_test(image: str) -> None:
    """Its screen on the serial line: the first test, and the second after it, with no errors found."""
    arguments = (package("memtest86+", f"boot/{image}"), "--memory", "8M", "--append", "console=ttyS0,115200")
    screen = shown_until(r"#[1-9] +\[", *arguments)
    assert "Memtest86+ v6.10" in screen
    assert "#0  [Address test, walking ones" in screen
    assert set(re.findall(r"Errors: +(\d+)", screen)) == {"0"}


def test_memtest86_works_on_two_cpus() -> None:
    """It finds both in the MADT, starts the other one, and has them test in parallel, waiting for each other."""
    arguments = (package("memtest86+", "boot/memtest86+x64.bin"), "--memory", "8M", "--cpus", 2)
    screen = shown_until(r"(?s)Using: All Cores.*#[2-9] +\[", *arguments, "--append", "console=ttyS0,115200")
    assert "CPU: 2 Cores 2 Threads    SMP: 2T (PAR)" in screen
    assert "#0  [Address test, walking ones" in screen
    assert set(re.findall(r"Errors: +(\d+)", screen)) == {"0"}


def xen_modules(tmp_path: Path, script: str) -> tuple[object, ...]:
    """The options that give Xen its dom0: Debian's full kernel, for the small one cannot be one, and an initrd."""
    kernel = fetched(lambda: debian.linux_kernel("amd64", "amd64"))
    initrd = tmp_path / "initrd"
    initrd.write_bytes(busybox_initrd(fetched(debian.busybox).read_bytes(), script))
    xen = "console=com1 com1=115200,8n1 loglvl=all noreboot"
    return "--append", xen, "--module", f"{kernel},console=hvc0 earlyprintk=xen", "--module", initrd, "--memory", "512M"


def test_xen_starts_its_first_domain(tmp_path: Path) -> None:
    """By Multiboot 2, on 2 CPUs: Linux at CPL 3 as dom0 reaches user space, sends its IPIs, and switches off."""
    image = package("xen-hypervisor-4.17-amd64", "boot/xen-*.gz")
    script = 'mount -t proc proc /proc\necho "MARK $(uname -m) $(nproc)"\ncat /proc/interrupts\npoweroff -f\n'
    status, shown = ended(image, *xen_modules(tmp_path, script), "--cpus", 2)
    shown = shown.replace("\r", "")  # dom0 and Xen each add one
    assert status == 0, shown[-3000:]
    for line in (
        "(XEN) Bootloader: iobus",
        "(XEN) ACPI: IOAPIC (id[0x00] address[0xfec00000] gsi_base[0])",
        "(XEN) Platform timer is 100.000MHz HPET",
        "(XEN) Brought up 2 CPUs",
        "(XEN) NX (Execute Disable) protection active",
        "(XEN) *** Building a PV Dom0 ***",
        "MARK x86_64 2",
        "(XEN) Entering ACPI S5 state.",
    ):
        assert f"{line}\n" in shown, f"{line} is not in {shown}"
    for cpu in range(2):  # each took rescheduling and function-call IPIs
        for kind in ("resched", "callfuncsingle"):
            counts = re.search(rf"^ *\d+:((?: +\d+)+)  xen-percpu .* {kind}{cpu}$", shown, re.MULTILINE)
            assert counts is not None and int(counts[1].split()[cpu]) > 0, shown
    assert not re.search(r"\(XEN\) (Panic|----\[)|Unhandled|crashed", shown)


def test_xen_by_multiboot_1(tmp_path: Path) -> None:
    """The same image without its Multiboot 2 header: Xen finds memory map, command lines and modules by the first."""
    data = bytearray(gzip.decompress(package("xen-hypervisor-4.17-amd64", "boot/xen-*.gz").read_bytes()))
    at = data.index(struct.pack("<I", 0xE85250D6))
    data[at : at + 4] = bytes(4)
    image = tmp_path / "xen"
    image.write_bytes(data)
    shown = shown_until(r"\[    0.000000\] Command line: .*\n", image, *xen_modules(tmp_path, "poweroff -f\n"))
    assert "(XEN) Multiboot-e820 RAM map:" in shown
    assert "(XEN) *** Building a PV Dom0 ***" in shown
    assert "Command line: console=hvc0 earlyprintk=xen" in shown


INIT = """\
mount -t proc proc /proc
echo "MARK $(uname -m) $(cat /proc/cmdline)"
cat /proc/interrupts
sleep 1
cat /proc/interrupts
echo END
"""


@pytest.mark.parametrize("flavour", ["686", "686-pae"])
@pytest.mark.parametrize("bare", [False, True], ids=["acpi", "noapic nolapic acpi=off"])
def test_32_bit_linux_reaches_user_space(tmp_path: Path, flavour: str, bare: bool) -> None:
    """By the 32-bit boot protocol, 32-bit paging and PAE; with the APICs and ACPI, and with 8259s and 8254 alone."""
    kernel = fetched(lambda: debian.linux_kernel(flavour, "i386"))
    initrd = tmp_path / "initrd"
    ending = "reboot -f" if bare else "poweroff -f"  # without ACPI it cannot switch off
    initrd.write_bytes(busybox_initrd(fetched(lambda: debian.busybox("i386")).read_bytes(), f"{INIT}{ending}\n"))
    options = "console=ttyS0 quiet" + (" noapic nolapic acpi=off" if bare else "")
    status, shown = ended(kernel, "--module", initrd, "--append", options, "--no-reboot")
    assert status == 0, shown[-3000:]
    assert f"\nMARK i686 {options}\n" in f"\n{shown}"
    counts = [int(count) for count in re.findall(r"^ *(?:0|LOC): +(\d+)", shown, re.MULTILINE)]
    chip = "XT-PIC" if bare else "IO-APIC"
    assert re.search(rf"^ *4: +\d+ +{chip} .*ttyS0$", shown, re.MULTILINE)
    before, after = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    assert any(later > earlier for earlier, later in zip(before, after, strict=True)), shown


@pytest.mark.parametrize(
    ("flavour", "architecture", "name"), [("686-pae", "i386", "i686"), ("amd64", "amd64", "x86_64")]
)
def test_linux_by_pvh(tmp_path: Path, flavour: str, architecture: str, name: str) -> None:
    """Its vmlinux, taken out of the bzImage, has a PVH entry: memory map, command line and initrd by the start info."""
    data = fetched(lambda: debian.linux_kernel(flavour, architecture)).read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[(data[0x1F1] + 1) * 512 + offset :][: length - 4]  # 4 bytes of size follow
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(lzma.LZMADecompressor().decompress(payload))
    initrd = tmp_path / "initrd"
    initrd.write_bytes(
        busybox_initrd(fetched(lambda: debian.busybox(architecture)).read_bytes(), f"{INIT}poweroff -f\n")
    )
    status, shown = ended(vmlinux, "--module", initrd, "--append", "console=ttyS0 quiet")
    assert status == 0, shown[-3000:]
    assert f"MARK {name} console=ttyS0 quiet\n" in shown
