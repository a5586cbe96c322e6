/* What kvm.py holds iobus's run loop beside: the same guest, and the shortest loop in C that answers it.
 *
 * Lines on standard input, "CODE-IN-HEX COUNT": the code is run in 32-bit protected mode with flat segments, EDI at
 * the device's scratch register and ECX = COUNT. The answer is a line with the ns that it took to its HLT, and the
 * register's last value. A message on standard error and status 1 where KVM does not do it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { CODE_AT = 0x10000, RAM = 0x100000, DEVICE_AT = 0xD0000000, SCRATCH = 4 };

static int make(int fd, unsigned long request, void *argument, const char *name)
{
	int result = ioctl(fd, request, argument);

	if (result < 0) {
		fprintf(stderr, "%s: %s\n", name, strerror(errno));
		exit(1);
	}
	return result;
}

#define MAKE(fd, request, argument) make(fd, request, (void *)(argument), #request)

static long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static struct kvm_segment flat(int selector, int type)
{
	struct kvm_segment s = { .limit = 0xFFFFFFFF, .selector = selector, .type = type, .present = 1, .db = 1, .s = 1,
				 .g = 1 };
	return s;
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = MAKE(kvm, KVM_CREATE_VM, 0);
	unsigned char *ram = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .memory_size = RAM, .userspace_addr = (unsigned long)ram };
	MAKE(vm, KVM_SET_USER_MEMORY_REGION, &region);
	int vcpu = MAKE(vm, KVM_CREATE_VCPU, 0);
	int size = MAKE(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	unsigned scratch = 0, count;
	char hex[256];

	while (scanf("%255s %u", hex, &count) == 2) {
		struct kvm_regs regs = { .rip = CODE_AT, .rdi = DEVICE_AT + SCRATCH, .rcx = count, .rflags = 2 };
		struct kvm_sregs sregs;

		for (unsigned at = 0; hex[2 * at]; at++)
			sscanf(hex + 2 * at, "%2hhx", ram + CODE_AT + at);
		MAKE(vcpu, KVM_GET_SREGS, &sregs);
		sregs.cr0 = 0x11;
		sregs.cs = flat(0x8, 11);
		sregs.ds = sregs.es = sregs.ss = flat(0x10, 3);
		MAKE(vcpu, KVM_SET_SREGS, &sregs);
		MAKE(vcpu, KVM_SET_REGS, &regs);
		long long start = now();

		for (;;) {
			if (ioctl(vcpu, KVM_RUN, 0) < 0) {
				perror("KVM_RUN");
				return 1;
			}
			if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == DEVICE_AT + SCRATCH) {
				if (run->mmio.is_write)
					memcpy(&scratch, run->mmio.data, 4);
				else
					memcpy(run->mmio.data, &scratch, 4);
			} else {
				break;
			}
		}
		if (run->exit_reason != KVM_EXIT_HLT) {
			fprintf(stderr, "the loop ended with exit %u, not at its HLT\n", run->exit_reason);
			return 1;
		}
		printf("%lld %u\n", now() - start, scratch);
		fflush(stdout);
	}
	return 0;
}
