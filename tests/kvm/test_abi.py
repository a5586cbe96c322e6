"""The kernel's interface in `engines/kvm` beside what the system's C compiler makes of `linux/kvm.h`."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iobus.engines.kvm import abi, ioctls, runpage

NOT_IN_C = frozenset({"later", "opaque"})
"""Fields that stand for what later kernels put there, or for all that nobody looks into."""


def records() -> list[type[abi.Record]]:
    found = [value for value in vars(abi).values() if isinstance(value, type) and issubclass(value, abi.Record)]
    return [record for record in found if record.C]


def fields(record: Any, prefix: str = "", at: int = 0) -> Iterator[tuple[str, int, int]]:
    """Each field's path as C writes it, its offset and its size; those of structures inside it too."""
    for name, kind, *_ in record._fields_:
        where = at + getattr(record, name).offset
        if name in getattr(record, "_anonymous_", ()):
            yield from fields(kind, prefix, where)
            continue
        if name in NOT_IN_C:
            continue
        yield prefix + name, where, ctypes.sizeof(kind)
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure | ctypes.Union):
            yield from fields(kind, f"{prefix}{name}.", where)


def constants() -> dict[str, int]:
    return {name: value for name, value in vars(ioctls).items() if name.startswith("KVM_")}


@pytest.fixture(scope="module")
def said_by_the_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Each question in C and its answer."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) is installed")
    questions = [f"sizeof({record.C})" for record in records()]
    for record in records():
        for path, _, _ in fields(record):
            questions += [f"offsetof({record.C}, {path})", f"sizeof((({record.C} *)0)->{path})"]
    lines = [f'printf("%s\\t%llu\\n", "{q}", (unsigned long long)({q}));' for q in questions]
    for name in constants():
        lines.append(f'#ifdef {name}\nprintf("{name}\\t%llu\\n", (unsigned long long)({name}));\n#endif')
    directory = tmp_path_factory.mktemp("abi")
    source, program = directory / "abi.c", directory / "abi"
    includes = "#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\n"
    source.write_text(includes + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    if not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("linux/kvm.h is not installed (Debian: linux-libc-dev)")
    built = subprocess.run([compiler, "-o", program, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {line.split("\t")[0]: int(line.split("\t")[1]) for line in output.splitlines()}


@pytest.mark.parametrize("record", records(), ids=lambda record: record.__name__)
def test_structures_lie_as_in_c(record: type[abi.Record], said_by_the_compiler: dict[str, int]) -> None:
    """Size of the structure, offset and size of each field: what the compiler says."""
    whole = f"sizeof({record.C})"
    ours = {} if record in (abi.Run, abi.Xsave) else {whole: ctypes.sizeof(record)}  # what follows is not used
    for path, at, size in fields(record):
        ours[f"offsetof({record.C}, {path})"] = at
        ours[f"sizeof((({record.C} *)0)->{path})"] = size
    assert ours == {question: said_by_the_compiler[question] for question in ours}


def test_requests_and_constants_are_the_headers(said_by_the_compiler: dict[str, int]) -> None:
    """Each KVM_ number that the header has is the header's."""
    known = {name: value for name, value in constants().items() if name in said_by_the_compiler}
    assert known == {name: said_by_the_compiler[name] for name in known}
    assert len(known) > 80


def test_a_path_of_fields_is_an_offset() -> None:
    """`offset` adds up along a path, through the anonymous union of `struct kvm_run` too."""
    assert abi.offset(abi.Run, "exit_reason") == 8
    assert abi.offset(abi.Run, "mmio") == abi.offset(abi.Run, "io") == 32
    assert abi.offset(abi.Run, "mmio", "is_write") == 32 + 8 + 8 + 4


def test_what_the_run_loop_reads_at_once_lies_where_it_looks() -> None:
    """The one look at `struct kvm_run` finds each field, padded as the structure is."""
    run = abi.Run(exit_reason=0x01020304, cr8=5, apic_base=6 << 40)
    run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = 7 << 50, 8, 1
    run.mmio.data[:] = range(8)
    found = runpage.MOSTLY(bytearray(run), runpage.MOSTLY_AT)
    assert found == (0x01020304, 5, 6 << 40, 7 << 50, int.from_bytes(bytes(range(8)), "little"), 8, 1)


def test_a_refused_request_is_named() -> None:
    """The error of a request that the kernel refuses has the request's name and the kernel's reason."""
    with Path("/dev/null").open() as file, pytest.raises(Exception, match="KVM_RUN: Inappropriate ioctl"):
        ioctls.call(file.fileno(), ioctls.KVM_RUN)
