"""Real guests on the PC's display and keyboard: SeaVGABIOS, and Debian's kernel with its console on tty0. Unicorn."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from cli_rig import terminal

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import LinuxKernel
from iobus.cli.boot import TEXT_COMMAND_LINE, LinuxGuest, run
from iobus.cpu_registers import Registers, Segment
from iobus.devices import vga_registers as reg
from iobus.devices.vga_registers import VgaState
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import KickExit, PowerOffExit
from iobus.pc.pc import Pc

pytestmark = pytest.mark.slow

SECONDS = 120


@pytest.fixture(scope="session")
def vgabios() -> bytes:
    try:
        return (debian.fetch("seabios") / "usr/share/seabios/vgabios-isavga.bin").read_bytes()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")


@pytest.fixture(scope="session")
def busybox() -> bytes:
    try:
        debian.cloud_kernel()
        return debian.busybox().read_bytes()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")


# SeaVGABIOS, called in real mode.

ROM = 0xC0000
CODE = 0x7C00


def int_10h(ax: int, *, bx: int = 0, cx: int = 0, dx: int = 0) -> bytes:
    """mov ax, bx, cx, dx; int 0x10."""
    values = zip((0xB8, 0xBB, 0xB9, 0xBA), (ax, bx, cx, dx), strict=True)
    return b"".join(bytes([opcode]) + value.to_bytes(2, "little") for opcode, value in values) + b"\xcd\x10"


def teletype(text: str) -> bytes:
    return b"".join(int_10h(0x0E00 | code, bx=7) for code in text.encode("cp437"))


def run_vgabios(rom: bytes, code: bytes) -> Pc:
    """A PC on whose VGA, fresh from reset, the ROM has been initialised and `code` has run. Close its machine."""
    pc = Pc(UnicornEngine(), memory=4 << 20)
    pc.machine.memory.write(ROM, rom)
    start = bytes.fromhex("fa 31c0 8ed8 8ec0 8ed0 bc007c 9a030000c0")  # cli; DS, ES, SS: 0; SP: CODE; call C000:0003
    off = bytes.fromhex("ba0406 b80034 ef f4")  # PM1_CNT = SLP_EN | S5
    pc.machine.memory.write(CODE, start + code + off)
    pc.vga.reset()
    data = Segment(0, 0, 0xFFFF, 0x93)
    pc.machine.vcpus[0].registers = Registers(
        rip=CODE, rflags=2, cr0=0x10, cs=Segment(0, 0, 0xFFFF, 0x9B), ds=data, es=data, ss=data, fs=data, gs=data,
        idt_limit=0x3FF,
    )  # fmt: skip
    assert isinstance(pc.machine.run(timeout=SECONDS), PowerOffExit)
    return pc


def test_a_video_bios_writes_text(vgabios: bytes) -> None:
    """Teletype, cursor and attributes by INT 10h, unmodified; the ROM's font is in plane 2."""
    code = teletype("Hello\r\nworld") + int_10h(0x0200, dx=0x0A05) + int_10h(0x0941, bx=0x1E, cx=3)
    pc = run_vgabios(vgabios, int_10h(0x0003) + code)
    with pc.machine:
        screen = pc.screen()
    assert str(screen) == "Hello\nworld" + "\n" * 9 + "     AAA"
    assert screen.attributes[10 * 80 + 5 : 10 * 80 + 9] == b"\x1e\x1e\x1e\x07"
    assert screen.cursor is not None and (screen.cursor.row, screen.cursor.column) == (10, 5)
    glyph = screen.fonts[0][32 * 65 : 32 * 65 + 16]
    assert any(glyph) and glyph in vgabios


def test_a_video_bios_scrolls_and_changes_the_height(vgabios: bytes) -> None:
    """26 lines leave the last 25; the 8 by 8 font (INT 10h 1112h) makes 50 rows."""
    lines = "".join(f"line {number}\r\n" for number in range(26))
    pc = run_vgabios(vgabios, int_10h(0x0003) + teletype(lines))
    with pc.machine:
        screen = pc.screen()
    assert [line.rstrip() for line in screen.lines] == [f"line {number}" for number in range(2, 26)] + [""]
    pc = run_vgabios(vgabios, int_10h(0x0003) + int_10h(0x1112) + teletype(lines))
    with pc.machine:
        screen = pc.screen()
    assert (screen.columns, screen.rows, screen.cell) == (80, 50, (9, 8))
    assert [line.rstrip() for line in screen.lines[:26]] == [f"line {number}" for number in range(26)]


def test_the_mode_that_is_set_without_firmware_is_the_bioss(vgabios: bytes) -> None:
    """`Vga.text_mode` leaves the registers and the colours of SeaVGABIOS's mode 3, and the empty screen."""
    ours = VgaState()
    reg.set_text_mode(ours)
    pc = run_vgabios(vgabios, int_10h(0x0003))
    with pc.machine:
        theirs = pc.vga.state
    assert (ours.misc, ours.pel_mask, ours.dac[:192]) == (theirs.misc, theirs.pel_mask, theirs.dac[:192])
    for name in ("crtc", "sequencer", "graphics", "attribute"):
        assert [hex(value) for value in getattr(ours, name)] == [hex(value) for value in getattr(theirs, name)], name
    assert ours.memory[0 : 4 * 4000 : 4] == theirs.memory[0 : 4 * 4000 : 4]
    assert ours.memory[1 : 4 * 4000 : 4] == theirs.memory[1 : 4 * 4000 : 4]


# Linux on tty0.


class Session:
    """A guest that runs on a thread of its own."""

    def __init__(self, kernel: Path, initrd: bytes, command_line: str, memory: int) -> None:
        self.pc = Pc(UnicornEngine(), memory=memory)
        guest = LinuxGuest(LinuxKernel.read(kernel), initrd, command_line)
        guest.load(self.pc)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(guest,), daemon=True)

    def _run(self, guest: LinuxGuest) -> None:
        self.exit = run(self.pc, guest, timeout=SECONDS, reboot=False)
        self.stopped.set()

    def wait_for(self, text: str) -> None:
        """Until the screen shows `text`."""
        self.wait_until(lambda shown: text in shown)

    def wait_until(self, good: Callable[[str], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not good(str(self.pc.screen())):
            assert not self.stopped.wait(0.02) and time.monotonic() < end, f"it did not come:\n{self.pc.screen()}"


@contextlib.contextmanager
def started(kernel: Path, initrd: bytes = b"", command_line: str = "", memory: int = 256 << 20) -> Iterator[Session]:
    it = Session(kernel, initrd, command_line, memory)
    it.thread.start()
    try:
        yield it
    finally:
        it.pc.machine.stop(KickExit())
        it.thread.join(SECONDS)
        it.pc.machine.close()


def session(
    busybox: bytes, script: str, append: str = "quiet", files: Mapping[str, bytes] = MappingProxyType({})
) -> contextlib.AbstractContextManager[Session]:
    initrd = busybox_initrd(busybox, script, files)
    return started(debian.cloud_kernel(), initrd, f"{TEXT_COMMAND_LINE} {append}")


SHELL = """\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
setsid cttyhack sh
poweroff -f
"""


def test_linux_shows_its_messages(busybox: bytes) -> None:
    """console=tty0: vgacon takes the display, its messages scroll past, the last of them stand on the screen."""
    with session(busybox, "mount -t proc proc /proc\ndmesg | grep -i 'console: colour'\npoweroff -f\n", "") as it:
        assert it.stopped.wait(SECONDS) and isinstance(it.exit, PowerOffExit)
        lines = [line.rstrip() for line in it.pc.screen().lines]
    assert lines[24] == "" and lines[23].endswith("reboot: Power down")
    assert any(line.endswith("Console: colour VGA+ 80x25") for line in lines)
    assert any("Run /init as init process" in line for line in lines)


def test_typing_reaches_a_shell(busybox: bytes) -> None:
    """Text of every printable character, by i8042 and atkbd; keys by name; colours; the cursor after the prompt."""
    printable = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "'")
    with session(busybox, SHELL) as it:
        it.wait_for("/ #")
        it.pc.keyboard.type(f"clear; echo '{printable}'\n")
        it.wait_for(f"{printable[:80]}\n{printable[80:]}\n/ #")
        screen = it.pc.screen()
        assert screen.cursor is not None
        assert screen.lines[screen.cursor.row].startswith("/ # ") and screen.cursor.column == 4
        it.pc.keyboard.press("ArrowUp")
        it.pc.keyboard.press("Control+u")
        it.pc.keyboard.type("printf '\\033[31;44mred\\033[m\\n' | tee /dev/null\n")
        it.wait_for("\nred\n")
        screen = it.pc.screen()
        at = 80 * next(row for row, line in enumerate(screen.lines) if line.startswith("red "))
        assert screen.attributes[at : at + 4] == b"\x14\x14\x14\x07"
        it.pc.keyboard.type("echo ready; cat\n")
        it.wait_for("\nready")
        it.pc.keyboard.type("twice\n\x04")
        it.wait_for("\ntwice\ntwice\n/ #")
        it.pc.keyboard.type("exit\n")
        assert it.stopped.wait(SECONDS) and isinstance(it.exit, PowerOffExit)


def test_linux_loads_a_font(busybox: bytes) -> None:
    """A font of 8 lines, loaded by BusyBox's loadfont, is in plane 2 and makes 50 rows; text goes on."""
    glyphs = b"".join(bytes([code]) * 8 for code in range(256))
    script = (
        "mount -t devtmpfs devtmpfs /dev\nmount -t proc proc /proc\nloadfont < /font\n"
        "i=0; while [ $i -lt 45 ]; do echo line $i; i=$((i + 1)); done\necho loaded\nsleep 1000\n"
    )
    with session(busybox, script, files={"/font": b"\x36\x04\x00\x08" + glyphs}) as it:  # PSF 1, 256 by 8 bytes
        it.wait_for("loaded")
        screen = it.pc.screen()
    assert (screen.rows, screen.cell) == (50, (9, 8))
    for code in (0, 1, 0x41, 0xFF):
        assert screen.fonts[0][32 * code : 32 * code + 8] == bytes([code]) * 8
    assert str(screen).endswith("\nline 44\nloaded")


def test_linux_drives_scan_code_set_3(busybox: bytes) -> None:
    """atkbd.set=3 without the controller's translation: Linux's own table makes the same text of our codes."""
    with session(busybox, SHELL, "quiet i8042.direct atkbd.set=3") as it:
        it.wait_for("/ #")
        it.pc.keyboard.type(
            "clear; dmesg | grep -o 'AT Raw Set . keyboard'; echo 'The quick [BROWN] fox_1234567890!'\n"
        )
        it.wait_for("AT Raw Set 3 keyboard\nThe quick [BROWN] fox_1234567890!\n")
        it.pc.keyboard.press("ArrowUp")
        for _ in range(6):
            it.pc.keyboard.press("Backspace")
        it.pc.keyboard.type("again'\n")
        it.wait_for("\nThe quick [BROWN] fox_123456again\n")


def test_memtest86_is_seen_and_listens() -> None:
    """memtest86+ polls the keyboard: F1 opens its menu over the running test, F10 closes it."""
    try:
        kernel = debian.fetch("memtest86+") / "boot/memtest86+x64.bin"
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")
    with started(kernel, memory=32 << 20) as it:
        it.wait_for("Status: Testing")
        screen = it.pc.screen()
        assert screen.lines[0].startswith("      Memtest86+ v") and screen.lines[6].startswith("─" * 28 + "┴")
        assert screen.attributes[80] == 0x17 and screen.attributes[6] == 0x70  # white on blue; black on white
        it.pc.keyboard.press("F1")
        it.wait_for("Settings:")
        it.pc.keyboard.press("F10")
        it.wait_until(lambda text: "Settings:" not in text)


def test_a_session_at_the_terminal(busybox: bytes) -> None:
    """`iobus boot --display text`: what is typed on the terminal is seen on it."""
    with terminal("boot", "--append", "quiet", "--timeout", SECONDS, "--display", "text") as it:
        it.wait_for(b"/ # ")
        it.type(b"echo $((6 * 7))\r")
        it.wait_for(b"42  ")
        it.type(b"exit\r")
        assert it.end() == 0
        assert b"\r\n42\r\n" in it.shown.split(b"\x1b[?1049l")[1]
        assert it.mode() == it.before
