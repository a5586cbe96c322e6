"""Inside the nested guest: /dev/kvm works, shown with nothing but system calls. It needs no iobus."""

import ctypes
import fcntl
import mmap
import os
import struct

KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
KVM_SET_USER_MEMORY_REGION, KVM_CREATE_VCPU, KVM_RUN = 0x4020AE46, 0xAE41, 0xAE80
KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_REGS = 0x8138AE83, 0x4138AE84, 0x4090AE82
KVM_EXIT_IO, KVM_EXIT_HLT = 2, 5


def test_the_api_version() -> None:
    """KVM_GET_API_VERSION gives 12, as of every KVM since 2007 (the kernel's Documentation/virt/kvm/api.rst, 4.1)."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    assert fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0) == 12
    os.close(kvm)


def test_a_guest_of_two_instructions() -> None:
    """A real-mode guest, `out 0x42, al` and `hlt`, makes an I/O exit with AL and then a halt."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    ram = mmap.mmap(-1, 0x1000)
    ram[:3] = b"\xe6\x42\xf4"  # out 0x42, al; hlt
    pointer = ctypes.c_char.from_buffer(ram)
    # struct kvm_userspace_memory_region: slot 0 at guest address 0.
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, 0x1000, ctypes.addressof(pointer)))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("=QIH", sregs, 0, 0, 0xFFFF, 0)  # CS: base, limit, selector
    fcntl.ioctl(vcpu, KVM_SET_SREGS, sregs)
    # struct kvm_regs: RAX is the first, RIP and RFLAGS the last.
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("=18Q", 0x5A, *[0] * 15, 0, 2))
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    assert struct.unpack_from("=I", run, 8) == (KVM_EXIT_IO,)
    # struct kvm_run, io: direction (1 is out), size, port, count, data_offset.
    direction, size, port, count, offset = struct.unpack_from("=BBHIQ", run, 32)
    assert (direction, size, port, count, run[offset]) == (1, 1, 0x42, 1, 0x5A)
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    assert struct.unpack_from("=I", run, 8) == (KVM_EXIT_HLT,)
    run.close()
    for descriptor in (vcpu, vm, kvm):
        os.close(descriptor)
    del pointer
    ram.close()
