"""boot/initrd.py: the archive, read by GNU cpio and by a small reader of the documented format."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.boot.initrd import Initrd, InitrdError, busybox_initrd, concatenate

ELF = b"\x7fELF a program"
needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="GNU cpio is not installed")


def read_newc(archive: bytes) -> list[tuple[str, list[int], bytes]]:
    """Read as buffer-format.rst says: (name, the 13 header fields, data) up to the trailer."""
    entries, at = [], 0
    while True:
        assert at % 4 == 0 and archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0") and b"\0" not in name[:-1]
        start = at + (110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert start == len(archive)
            return entries
        data = archive[start : start + size]
        assert len(data) == size
        entries.append((name[:-1].decode(errors="surrogateescape"), fields, data))
        at = (start + size + 3) // 4 * 4


def tree(archive: bytes) -> dict[str, tuple[int, bytes]]:
    return {name: (fields[1], data) for name, fields, data in read_newc(archive)}


@needs_cpio
def test_gnu_cpio_unpacks_what_was_packed(tmp_path: Path) -> None:
    """GNU cpio finds the files, modes, links and the directories made on the way, and no fault."""
    initrd = Initrd()
    initrd.add_file("/etc/deep/down/motd", b"hello\n", 0o640)
    initrd.add_file("empty", b"")
    initrd.add_dir("tmp", 0o1777)
    initrd.add_symlink("bin/sh", "busybox")
    result = subprocess.run(
        ["cpio", "-idm", "--quiet"], input=initrd.to_bytes(), cwd=tmp_path, capture_output=True, check=True
    )
    assert result.stderr == b""
    assert (tmp_path / "etc/deep/down/motd").read_bytes() == b"hello\n"
    assert stat.S_IMODE((tmp_path / "etc/deep/down/motd").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "etc/deep").stat().st_mode) == 0o755
    assert (tmp_path / "empty").read_bytes() == b""
    assert stat.S_IMODE((tmp_path / "tmp").stat().st_mode) == 0o1777
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")


@needs_cpio
def test_gnu_cpio_lists_the_device_nodes() -> None:
    """Devices keep kind and numbers: listing needs no root, unlike unpacking."""
    initrd = Initrd()
    initrd.add_device("dev/console", "char", 5, 1)
    initrd.add_device("dev/vda", "block", 254, 0, 0o660)
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid"], input=initrd.to_bytes(), capture_output=True, check=True
    ).stdout.decode()
    console, disk = (line.split() for line in listing.splitlines() if "dev/" in line)
    assert (console[0], console[4:6], console[-1]) == ("crw-------", ["5,", "1"], "dev/console")
    assert (disk[0], disk[4:6], disk[-1]) == ("brw-rw----", ["254,", "0"], "dev/vda")


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..", "TRAILER!!!")
)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@given(st.dictionaries(paths, st.tuples(st.integers(0, 0o7777), st.binary(max_size=50))), st.randoms())
def test_any_tree_comes_back(files: dict[str, tuple[int, bytes]], random) -> None:
    """Every file comes back with its mode and bytes, after its parents, and the calls' order is no matter."""
    kept: dict[str, tuple[int, bytes]] = {}
    initrd = Initrd()
    for path, (mode, data) in files.items():
        try:
            initrd.add_file(path, data, mode)
        except InitrdError:  # a file where another path needs a directory
            assert any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in kept)
        else:
            kept[path] = (mode, data)
    archive = initrd.to_bytes()
    entries = read_newc(archive)
    seen: set[str] = set()
    for name, fields, _ in entries:
        assert name not in seen and ("/" not in name or name.rpartition("/")[0] in seen)
        seen.add(name)
        assert fields[2] == fields[3] == fields[5] == fields[12] == 0  # root's, no time, no checksum
    assert len({fields[0] for _, fields, _ in entries}) == len(entries)  # one inode number an entry
    found = {name: (stat.S_IMODE(mode), data) for name, (mode, data) in tree(archive).items() if stat.S_ISREG(mode)}
    assert found == kept
    shuffled = list(kept.items())
    random.shuffle(shuffled)
    again = Initrd()
    for path, (mode, data) in shuffled:
        again.add_file(path, data, mode)
    assert again.to_bytes() == archive


def test_an_archive_of_nothing_is_its_trailer() -> None:
    """An empty tree is still an archive."""
    assert read_newc(Initrd().to_bytes()) == []


@pytest.mark.parametrize("path", ["", "/", "a//b", "a/", "./a", "a/../b", "nul\0", "TRAILER!!!", "x/" * 2047 + "xx"])
def test_a_path_that_no_archive_holds_is_refused(path: str) -> None:
    """Empty names, dots, NULs, the end mark and names over PATH_MAX: the kernel would skip or misread them."""
    with pytest.raises(InitrdError, match=r"\.|;|cannot|takes"):
        Initrd().add_file(path, b"")


def test_bad_entries_are_refused_with_the_value() -> None:
    """Each error names what was given; a refused entry leaves the archive as it was."""
    initrd = Initrd()
    initrd.add_file("bin", b"")
    before = initrd.to_bytes()
    with pytest.raises(InitrdError, match="'/bin' is in the archive already"):
        initrd.add_file("/bin", b"")
    with pytest.raises(InitrdError, match="'bin' is in the archive already"):
        initrd.add_dir("bin")
    with pytest.raises(InitrdError, match="'bin' is no directory"):
        initrd.add_file("bin/sh", b"")
    with pytest.raises(InitrdError, match="0o10000"):
        initrd.add_file("x", b"", 0o10000)
    with pytest.raises(InitrdError, match="'pipe'"):
        initrd.add_device("x", "pipe", 0, 0)  # type: ignore[arg-type]
    with pytest.raises(InitrdError, match="4096:0"):
        initrd.add_device("x", "char", 4096, 0)
    with pytest.raises(InitrdError, match="0:-1"):
        initrd.add_device("x", "block", 0, -1)
    with pytest.raises(InitrdError, match="points to ''"):
        initrd.add_symlink("x", "")
    with pytest.raises(InitrdError, match="NUL"):
        initrd.add_symlink("x", "a\0b")
    assert initrd.to_bytes() == before


def test_a_directory_takes_a_mode_after_its_children_made_it() -> None:
    """`add_dir` on a directory that is there changes its mode and nothing else."""
    initrd = Initrd()
    initrd.add_file("root/.profile", b"cd\n")
    initrd.add_dir("root", 0o700)
    assert tree(initrd.to_bytes())["root"] == (stat.S_IFDIR | 0o700, b"")
    assert tree(initrd.to_bytes())["root/.profile"][1] == b"cd\n"


def test_archives_concatenate_at_four_bytes() -> None:
    """The kernel looks for the next archive at a multiple of 4, past zeros (buffer-format.rst)."""
    one, two = Initrd(), Initrd()
    two.add_file("late", b"x")
    compressed = b"\x1f\x8b and so on."  # 13 bytes
    whole = concatenate(one.to_bytes(), compressed, two.to_bytes())
    at = whole.index(compressed)
    assert at % 4 == 0
    rest = whole[at + len(compressed) :].lstrip(b"\0")
    assert (len(whole) - len(rest)) % 4 == 0
    assert [name for name, _, _ in read_newc(rest)] == ["late"]


def test_busybox_initrd_is_a_shell_guest() -> None:
    """BusyBox, its links, the nodes a shell needs, the directories to mount on, /init and the user's files."""
    archive = busybox_initrd(ELF, "echo up", {"etc/motd": b"hi", "/lib/m.ko": b"\0"})
    entries = {name: (fields, data) for name, fields, data in read_newc(archive)}
    modes = {name: fields[1] for name, (fields, _) in entries.items()}
    assert entries["bin/busybox"][1] == ELF and modes["bin/busybox"] == stat.S_IFREG | 0o755
    for applet in ("sh", "mount", "cat", "ls", "poweroff", "reboot", "[", "insmod", "devmem"):
        assert modes[f"bin/{applet}"] == stat.S_IFLNK | 0o777 and entries[f"bin/{applet}"][1] == b"busybox"
    for node, numbers in {"console": [5, 1], "null": [1, 3], "ttyS0": [4, 64]}.items():
        assert stat.S_ISCHR(modes[f"dev/{node}"]) and entries[f"dev/{node}"][0][9:11] == numbers
    assert {"proc", "sys", "dev", "etc", "tmp"} <= {name for name, mode in modes.items() if stat.S_ISDIR(mode)}
    assert modes["tmp"] == stat.S_IFDIR | 0o1777
    assert entries["init"][1] == b"#!/bin/sh\necho up\n" and modes["init"] == stat.S_IFREG | 0o755
    assert entries["etc/motd"][1] == b"hi" and entries["lib/m.ko"][1] == b"\0"


def test_busybox_initrd_keeps_a_script_as_it_is_and_refuses_what_is_no_program() -> None:
    """A script with its own interpreter line is not given another; text for BusyBox is refused."""
    assert tree(busybox_initrd(ELF, "#!/bin/ash -e\ntrue\n"))["init"][1] == b"#!/bin/ash -e\ntrue\n"
    with pytest.raises(InitrdError, match="b'#!/b'"):
        busybox_initrd(b"#!/bin/sh", "true")
    with pytest.raises(InitrdError, match="'init' is in the archive already"):
        busybox_initrd(ELF, "true", {"init": b""})


def test_every_link_is_a_command_of_this_busybox() -> None:
    """No link in /bin says "applet not found" (asked of the machine's BusyBox, where it has one)."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox on this machine to ask")
    known = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    if len(known) < 200:
        pytest.skip(f"{os.path.realpath(busybox)} is a cut-down BusyBox of {len(known)} commands")
    links = {name[4:] for name, (mode, _) in tree(busybox_initrd(ELF, "true")).items() if stat.S_ISLNK(mode)}
    assert links - set(known) == set()
