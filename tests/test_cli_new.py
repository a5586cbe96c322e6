"""`iobus new`: what it writes runs at once, with a test that passes, and tools have nothing to say of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iobus.cli import main

RDL = """\
addrmap dma_engine {
    desc = "Copies memory.";
    reg { field { sw = w; singlepulse; desc = "Starts it"; } GO[0:0] = 0; field { desc = "Interrupts"; } IE[1:1] = 1; }
        CTRL @ 0x0;
    reg { field { onwrite = woclr; } DONE[0:0]; } STATUS @ 0x4;
    regfile { reg { field {} ADDRESS[31:0] = 0x1000; } SOURCE @ 0x0; } CHANNEL[4] @ 0x10 += 0x10;
    external mem { mementries = 4; memwidth = 32; } BUFFER @ 0x100;
};
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


TYPES = ["mypy", "--strict", "--cache-dir", str(Path(__file__).parents[1] / ".mypy_cache")]


def assert_clean(*files: str, also: tuple[list[str], ...] = ()) -> None:
    """ruff's format and rules, and pytest, take the files as they are."""
    tools = Path(sys.executable).parent
    for command in (["ruff", "format", "--isolated", "--check"], ["ruff", "check", "--isolated"], *also):
        tool = shutil.which(command[0], path=str(tools))
        if tool is not None:
            done = subprocess.run([tool, *command[1:], *files], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *files[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_is_enough(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a register map it writes the fewest registers that show how a device is written, and their test."""
    assert main(["new", "DmaEngine"]) == 0
    assert capsys.readouterr().err == (
        "iobus: wrote dma_engine.py and test_dma_engine.py; "
        "try: iobus boot --device dma_engine.py:DmaEngine@0xD0000000\n"
    )
    assert_clean("dma_engine.py", "test_dma_engine.py")
    assert len((here / "dma_engine.py").read_text().splitlines()) < 40


def test_a_register_map_becomes_a_device(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The class has the map's name and docs; what it cannot have is said; the test knows the reset values."""
    pytest.importorskip("systemrdl", reason="systemrdl-compiler is not installed")
    (here / "chip.rdl").write_text(RDL)
    assert main(["new", "--from", "chip.rdl"]) == 0
    assert capsys.readouterr().err == (
        "chip.rdl:7: dma_engine.BUFFER: it is a memory, which is no register; left out\n"
        "iobus: wrote dma_engine.py and test_dma_engine.py; "
        "try: iobus boot --device dma_engine.py:DmaEngine@0xD0000000\n"
    )
    assert_clean("dma_engine.py", "test_dma_engine.py", also=(TYPES,))
    device, test = (here / "dma_engine.py").read_text(), (here / "test_dma_engine.py").read_text()
    assert '"""Copies memory."""' in device
    assert "    @on_write(CTRL.GO)\n    def write_ctrl_go(self, value: int) -> None:\n" in device
    assert "assert registers.CHANNEL[0].SOURCE.read() == 0x1000" in test
    assert "def test_ctrl_keeps_what_is_written" in test


def test_the_boot_command_takes_what_was_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The device is on the address map at the address that was said."""
    assert main(["new", "Timer", "--output", "my_timer.py"]) == 0
    assert main(["map", "--device", "my_timer.py:Timer@0xD0000000"]) == 0
    assert "0xd0000000" in capsys.readouterr().out


def test_a_changed_device_fails_its_test(here: Path) -> None:
    """The test that is written can fail: it holds the reset values."""
    pytest.importorskip("systemrdl", reason="systemrdl-compiler is not installed")
    (here / "chip.rdl").write_text(RDL)
    assert main(["new", "Dma", "--from", "chip.rdl"]) == 0
    device = here / "dma.py"
    device.write_text(device.read_text().replace("reset=0x1000", "reset=0x2000"))
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "test_dma.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "assert 8192 == 4096" in done.stdout


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a device nor a test that is there."""
    (here / "test_timer.py").write_text("mine")
    assert main(["new", "Timer"]) == 2
    assert capsys.readouterr().err == (
        "iobus: test_timer.py exists already; remove it, or choose another name with --output\n"
    )
    assert not (here / "timer.py").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "iobus new: give the device's NAME, or a register map with --from"),
        (["3com"], "iobus new 3com: it names a class; use letters, digits and underscores, as in Timer"),
        (["class"], "iobus new class: class is a keyword of Python; choose another name, as in Timer"),
        (["Timer", "--top", "x"], "--top x: it is for a register map, which --from names"),
        (["Timer", "--output", "timer.txt"], "--output timer.txt: a test imports it, so it is called NAME.py"),
        (["Timer", "--output", "."], "--output .: a test imports it, so it is called NAME.py"),
        (["Timer", "--output", ""], "--output .: a test imports it, so it is called NAME.py"),
        (["Timer", "--output", "no/timer.py"], "no/timer.py cannot be written: No such file or directory"),
        (["--from", "a.doc"], "--from a.doc: use NAME.rdl (SystemRDL), NAME.svd (CMSIS-SVD) or NAME.xml (IP-XACT)"),
        (["--from", "no.svd"], "no.svd cannot be read: No such file or directory"),
        (["--from", "no.xml"], "no.xml cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and a sentence that names what is wrong."""
    assert main(["new", *arguments]) == 2
    assert capsys.readouterr().err == f"iobus: {said}\n"


@pytest.mark.parametrize(
    "name", ["Pin", "Pc", "Register", "Field", "RW", "W", "Control", "Status", "Bench", "bus", "int"]
)
def test_a_name_that_the_file_uses_itself_is_refused(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The class would hide what is imported: nothing is written, and one line proposes another name."""
    assert main(["new", name]) == 2
    assert capsys.readouterr().err == (
        f"iobus: iobus new {name}: what is written uses the name {name} itself; choose another, as in {name}Device\n"
    )
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", ["Random", "Signal", "Pytest", "Iobus", "Conftest"])
def test_no_file_hides_a_module_of_others(name: str, here: Path) -> None:
    """Beside a random.py nothing that imports Python's would run, its own test first: it is random_device.py."""
    assert main(["new", name]) == 0
    module = f"{name.lower()}_device"
    assert {path.name for path in here.iterdir()} == {f"{module}.py", f"test_{module}.py"}
    assert_clean(f"{module}.py", f"test_{module}.py")


def test_a_map_whose_names_mean_something_is_still_a_device(here: Path) -> None:
    """What Python, an enumeration or the language of registers has by a map's name gets another; tools are content."""
    pytest.importorskip("systemrdl", reason="systemrdl-compiler is not installed")
    (here / "odd.rdl").write_text(
        "enum odd { None = 0; name = 1; value = 2; mro = 3; imag = 4; doc = 5; };\n"
        "addrmap register {\n"
        "    reg { field { encode = odd; } RW[3:0] = 5; field {} Field[7:4] = 2; } VALUES @ 0x0;\n"
        "    reg { field { sw = w; singlepulse; } V[0:0] = 0; } \\int @ 0x4;\n"
        "};\n"
    )
    assert main(["new", "--from", "odd.rdl"]) == 0
    assert_clean("register_device.py", "test_register_device.py", also=(TYPES,))
    text = (here / "register_device.py").read_text()
    assert "class RegisterDevice(RegisterBank):" in text
    assert 'int_ = Int(0x4, name="int")' in text
    assert "    mro_ = 3" in text


def test_which_peripheral_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of several says how to choose; SVD files are known under the name .xml too."""
    pytest.importorskip("svd2py", reason="svd2py is not installed")
    registers = "<registers><register><name>CR</name><addressOffset>0</addressOffset></register></registers>"
    peripherals = "".join(f"<peripheral><name>{name}</name>{registers}</peripheral>" for name in ("UART0", "UART1"))
    (here / "chip.xml").write_text(f"<device><name>X</name><peripherals>{peripherals}</peripherals></device>")
    assert main(["new", "--from", "chip.xml"]) == 2
    assert capsys.readouterr().err == (
        "iobus: chip.xml: say which peripheral is meant with --top; it has UART0, UART1\n"
    )
    assert main(["new", "--from", "chip.xml", "--top", "UART1"]) == 0
    assert (here / "uart1.py").is_file()
