"""The machine code of `stubs.s` (x86-64 hosts) and the table of addresses it works from.

`stubs.s` says what each hook does and why it is machine code. `CODE` holds its bytes; a test
assembles the source again and compares.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

CODE: Final = bytes.fromhex(
    """
    5348 89d3 81fe 0001 0000 7365 4883 bb18 0100 0000 0f85 9800 0000 488b 4b58 8339 0074 198d 46fd 83f8
    0248 19c0 4883 c002 488b 8b90 0000 0048 2901 eb2d 83fe 0b74 0583 fe0d 7523 488b 8b88 0000 00f7 0100
    4000 0074 1448 8b8b e800 0000 f601 0274 088b 01d1 e8ff c089 0148 8b3b ff53 10eb 35ff 5348 85c0 742e
    0fb6 f0a9 0002 0000 750e 488b 7b08 ba01 0000 00ff 5318 eb16 488b 4b50 8931 488b 4b58 c701 0000 0000
    488b 3bff 5310 488b 4b58 c701 0000 0000 5bc3 48c7 8318 0100 0000 0000 0048 8b8b e800 0000 8309 04e9
    4eff ffff 0f1f 4000 5348 89f3 488b 3bff 5310 488b 4b58 c701 0000 0000 b801 0000 005b c30f 1f44 0000
    5355 4883 ec08 4889 cb48 89f5 488b 7500 e82c 0000 0048 8b75 000f b745 0a48 8d74 06ff 488b 4500 4831
    f0a9 00f0 ffff 7405 e80c 0000 00e8 4600 0000 4883 c408 5d5b c348 83ec 0848 8b7b 0831 d2ff 5338 4883
    f8ff 7419 48c1 e80c 4803 83e0 0000 0080 3800 7509 c600 0148 8b3b ff53 4048 83c4 08c3 6666 2e0f 1f84
    0000 0000 000f 1f00 488b 8b30 0100 0048 8b09 488b 9340 0100 0048 898b 4001 0000 4839 ca76 0a48 8b93
    3801 0000 488b 1248 83c2 3f48 83e2 c048 89c8 4829 d048 3d00 0010 000f 87e6 0000 0048 39ca 0f83 dd00
    0000 488b 0248 3b83 4801 0000 0f85 c400 0000 488b 7208 3bb3 5001 0000 0f85 b400 0000 488b bb60 0100
    0080 7a0c e874 6066 817a 0cff 150f 859b 0000 004c 634a 0e4e 8d44 0a12 4939 d00f 8289 0000 0049 39c8
    0f83 8000 0000 4d8b 004c 3b83 5801 0000 7574 4889 42e0 4889 72e8 c642 ed25 4183 c120 4489 4aee 48b8
    ffff ff0f 1f80 0000 4889 3a48 8942 0866 c742 1000 00eb 474c 634a 0d4e 8d44 0a11 4c3b 8358 0100 0075
    3548 8942 e089 72e8 c642 ece9 4183 c120 4489 4aed 48b8 0000 0000 0001 0000 4829 c748 b8ff ffff 660f
    1f44 0048 893a 4889 4208 c642 1000 4883 c240 e91a ffff ffc3 0f1f 8400 0000 0000 5355 4154 4155 488b
    1dc3 0300 0048 89f5 4189 cc45 89c5 4585 c00f 84e2 0000 00ff 7424 28ff 93c0 0000 0048 83c4 0884 c00f
    84c5 0000 0041 83fc 020f 84ac 0000 0049 c1e5 044c 03ab c800 0000 4889 ea48 c1ea 0649 2355 0049 0355
    0849 89d5 498b 4508 4883 f8ff 0f84 8100 0000 a900 0200 0075 7a48 81e5 00f0 ffff 4889 ee49 0375 2048
    8bbb b800 0000 4883 ec08 ff93 d000 0000 4883 c408 4889 c248 c1ea 0c48 0393 e000 0000 803a 0074 3c49
    837d 10ff 753d 4183 fc01 740d 4881 cd00 0800 0049 896d 10eb 2ac6 0200 488b bbb8 0000 0048 89c6 488d
    9000 1000 0048 83ec 08ff 93d8 0000 0048 83c4 0849 c745 10ff ffff ff48 83bb 1801 0000 0075 44b8 0100
    0000 415d 415c 5d5b c348 837c 2428 000f 8412 ffff ff48 8b83 8800 0000 8b00 f7d0 a803 0f85 fffe ffff
    41b8 0200 0000 4589 c548 c783 1801 0000 0100 0000 e9e6 feff ff48 c783 1801 0000 0000 0000 488b 83c8
    0000 0048 89ee 48c1 ed06 4889 ea48 2350 2048 0350 28f7 0200 0200 0075 3f48 2328 4803 6808 488b 0248
    0d00 0800 0048 8945 0048 8b42 0848 0d00 0800 0048 8945 0848 c745 10ff ffff ff48 8b42 1848 8945 1848
    8b42 2048 8945 20e9 51ff ffff 488b 3bba 0100 0000 4489 e145 31c0 4531 c9ff 7424 28ff 93c0 0000 0048
    83c4 08e9 32ff ffff 0f1f 8400 0000 0000 5348 89cb e84c 0000 0048 89d9 488b 83f0 0000 005b ffe0 534c
    89c3 e836 0000 0049 89d8 ff93 f800 0000 488b 8328 0100 0085 c075 025b c348 c783 2801 0000 0000 0000
    488b 9390 0000 0048 0102 488b 3bff 9320 0100 000f 0b48 8b83 8800 0000 8b00 a903 0002 0074 2ea9 0000
    0200 7512 4189 c141 83e1 03c1 e80c 83e0 0341 39c1 7615 5756 5251 488b 7b08 d1ea ff94 d300 0100 0059
    5a5e 5fc3 6666 2e0f 1f84 0000 0000 0090 5355 4154 4889 f348 8b43 60f6 0001 0f84 2001 0000 488b 7b08
    ff53 2889 c548 8b93 9000 0000 488b 0248 83c0 024c 8b63 684d 8b24 2448 8b8b 8800 0000 8b31 f7c6 0040
    0000 7453 488b 93a8 0000 0048 8902 488b 93b0 0000 0089 e825 ffff feff 4889 0248 8b53 70f7 c600 8000
    0075 0448 8b53 7848 8b02 488b 9380 0000 0044 8b02 4181 c800 0001 0041 f7d0 83e6 bc81 ce30 8000 0041
    b900 9ba0 00eb 2489 c048 8b93 a800 0000 4889 0244 89e0 41b8 fffd fcff 81e6 bc7f ffff 83ce 3041 b900
    9bc0 0089 3148 83e8 0248 8b93 9000 0000 4889 0249 c1ec 2041 81e4 fcff 0000 488b 9398 0000 0044 8922
    48c7 4208 0000 0000 c742 10ff ffff ff44 894a 1441 83c4 0841 81e4 fcff 0000 488b 93a0 0000 0044 8922
    48c7 4208 0000 0000 c742 10ff ffff ffc7 4214 0093 c000 488b 7b08 89ee 4421 c6ba d77f 2700 ff53 3041
    5c5d 5bc3 488b 7b08 be06 0000 00ff 5320 0f0b 6666 2e0f 1f84 0000 0000 000f 1f00 0f31 48c1 e220 4809
    d0c3 660f 1f44 0000 0000 0000 0000 0000
    """
)
ENTRIES: Final = {
    "interrupt": 0x0,
    "invalid": 0xD0,
    "edge": 0xF0,
    "fill": 0x2A0,
    "port_in": 0x470,
    "port_out": 0x486,
    "syscall": 0x510,
    "rdtsc": 0x660,
    "table": 0x670,
}
"""Where each hook starts in `CODE`."""


class Table(ctypes.Structure):
    """What the stubs get as user data: addresses of functions and fields, in the order of stubs.s."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "cpu", "env", "do_interrupt", "do_hardirq", "raise_exception", "read_eflags", "write_eflags",
            "code_page", "tlb_flush", "intercept", "exception_index", "is_int", "efer", "star", "lstar",
            "cstar", "fmask", "hflags", "rip", "seg_cs", "seg_ss", "rcx", "r11",
            "uc", "tlb_fill", "tlb_fast", "ram_address", "drop_code", "code_pages", "error_code",
            "port_in", "port_out", "check_iob", "check_iow", "check_iol", "lent", "loop_exit", "leave",
            "generated", "buffer", "swept", "head", "head_end", "check_exit", "quick",
        )
    ]  # fmt: skip


class Stubs:
    """The code in executable memory, for one table: the address of each entry is an attribute."""

    def __init__(self, table: Table) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(CODE)
        place = ENTRIES["table"]
        self._memory[place : place + 8] = ctypes.addressof(table).to_bytes(8, "little")
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.interrupt = base + ENTRIES["interrupt"]
        self.invalid = base + ENTRIES["invalid"]
        self.edge = base + ENTRIES["edge"]
        self.fill = base + ENTRIES["fill"]
        self.port_in = base + ENTRIES["port_in"]
        self.port_out = base + ENTRIES["port_out"]
        self.syscall = base + ENTRIES["syscall"]
        self.rdtsc = ctypes.PYFUNCTYPE(ctypes.c_uint64)(base + ENTRIES["rdtsc"])
        """Read the host's time stamp counter."""
