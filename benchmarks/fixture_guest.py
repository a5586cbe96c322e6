"""The process that boots the guest of the fixture `guest` for `testing.py`, and says so; it ends when killed."""

from __future__ import annotations

import sys

from benchmarks.guests import FIXTURE_UP
from iobus.testing.guest import Guest


def main() -> None:
    """Boot as the fixture does, and wait."""
    guest = Guest("unicorn")
    guest.boot()
    print(FIXTURE_UP.decode(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
