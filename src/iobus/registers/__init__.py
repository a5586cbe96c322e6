"""Registers as a language: declare a bank of registers, and it is a device. See docs/registers.md.

    from iobus.registers import RW, RW1C, Field, Register, RegisterBank, on_write

From the ground up: `kinds.py` (what a guest can do with a bit), `entries.py` (a register map as plain
data, and its checks), `bodies.py` (what a class body may hold), `fields.py` and `language.py` (what it is written
in), `layout.py` (how an access is carried out), `hooks.py` (methods around accesses), `describe.py` (what an access is
called), `bank.py` (the device). Files of registers come in by `systemrdl.py`, `svd.py` and `ipxact.py`, on
`fitting.py` (what can be of what they say) and `runtime.py` (a bank without a class body), and go out by
`systemrdl_export.py` and `source.py` (Python).
"""

from iobus.registers.bank import BankState, RegisterBank
from iobus.registers.describe import FieldValue, RegisterAccess
from iobus.registers.entries import (
    Dimension,
    FieldEntry,
    GroupEntry,
    MapError,
    RegisterEntry,
    RegisterMap,
    ValueEntry,
)
from iobus.registers.fields import Field, Values, bits
from iobus.registers.fitting import MapWarning
from iobus.registers.hooks import on_read, on_write
from iobus.registers.ipxact import from_ipxact
from iobus.registers.kinds import (
    KINDS,
    RC,
    RCW,
    RES0,
    RES1,
    RME,
    RMEW,
    RS,
    RW,
    RW0C,
    RW0S,
    RW0T,
    RW1,
    RW1C,
    RW1S,
    RW1T,
    RWC,
    RWME,
    RWS,
    W1,
    W1C,
    W1S,
    W1T,
    WO,
    Access,
    OnRead,
    OnWrite,
    R,
    W,
    kind,
)
from iobus.registers.language import Array, Register, RegisterGroup
from iobus.registers.runtime import BuiltBank
from iobus.registers.svd import from_svd
from iobus.registers.systemrdl import from_systemrdl
from iobus.registers.systemrdl_export import to_systemrdl

__all__ = [
    "KINDS",
    "RC",
    "RCW",
    "RES0",
    "RES1",
    "RME",
    "RMEW",
    "RS",
    "RW",
    "RW0C",
    "RW0S",
    "RW0T",
    "RW1",
    "RW1C",
    "RW1S",
    "RW1T",
    "RWC",
    "RWME",
    "RWS",
    "W1",
    "W1C",
    "W1S",
    "W1T",
    "WO",
    "Access",
    "Array",
    "BankState",
    "BuiltBank",
    "Dimension",
    "Field",
    "FieldEntry",
    "FieldValue",
    "GroupEntry",
    "MapError",
    "MapWarning",
    "OnRead",
    "OnWrite",
    "R",
    "Register",
    "RegisterAccess",
    "RegisterBank",
    "RegisterEntry",
    "RegisterGroup",
    "RegisterMap",
    "ValueEntry",
    "Values",
    "W",
    "bits",
    "from_ipxact",
    "from_svd",
    "from_systemrdl",
    "kind",
    "on_read",
    "on_write",
    "to_systemrdl",
]
