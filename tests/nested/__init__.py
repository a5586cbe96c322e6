"""The nested rig: a machine with a working /dev/kvm for tests, anywhere, without root and without /dev/kvm outside.

QEMU's TCG emulates a CPU with AMD's SVM. On it boots Debian's cloud kernel with its KVM modules, and in
that guest's user space runs this project under this machine's own Python: what `./run test` runs inside
sees a hardware-style KVM. Some 30 times slower than outside, so it is for what needs it.

`image.py` makes the file system of the guest, `machine.py` runs it in QEMU and brings results back,
`run.py` is the command line, and `inside/` is what is carried along. `tests/test_nested.py` is the
pytest side. How to use it by hand: docs/nested.md.
"""
