"""The process of the command: `iobus`, and `python -m iobus`. What it does is `iobus.cli`'s.

It imports nothing of iobus before it is ready for Ctrl-C, which may come while the rest is imported.
"""

import os
import sys


def main() -> int:
    """Run the command and return its exit status."""
    try:
        open_standard_streams()
        from iobus import cli

        return cli.main()
    except KeyboardInterrupt:
        print("iobus: interrupted", file=sys.stderr)
        return 130


def open_standard_streams() -> None:
    """Open /dev/null as each of standard input, output and error that is closed.

    The next file that the process opens would get its number, and what is meant for standard output with it.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(fd, True)  # as a shell's would be
            setattr(sys, name, open(fd, "w" if fd else "r"))  # noqa: PTH123, SIM115 for the life of the process


if __name__ == "__main__":
    sys.exit(main())
