# The local APIC of the PC: its base, modes, priorities, IPIs, errors and timer. Intel SDM vol. 3A, chapter 11.

        .include "pc64.inc"

# IA32_APIC_BASE.

# Disabled: the page is nobody's, CR8 goes on, CPUID says so; enabled again: as after a reset, but for TPR.
disable:
        mov     dword ptr [rbx + SVR], 0x1ff
        mov     dword ptr [rbx + TPR], 0x50
        wrmsr_  0x1b, 0xfee00100
        rdmsr_  0x1b
        log     eax
        mov     eax, [rbx + APIC_VERSION]
        log     eax
        mov     dword ptr [rbx + TPR], 0x20
        mov     eax, [rbx + TPR]
        log     eax
        mov     rax, cr8
        log     eax
        mov     eax, 7
        mov     cr8, rax
        mov     rax, cr8
        log     eax
        call    _cpuid_apic
        wrmsr_  0x1b, 0xfee00900
        mov     eax, [rbx + APIC_VERSION]
        and     eax, 0xf0
        log     eax
        mov     eax, [rbx + TPR]
        log     eax
        mov     eax, [rbx + SVR]
        log     eax
        mov     dword ptr [rbx + TPR], 0x30
        mov     rax, cr8
        log     eax
        call    _cpuid_apic
        end
_cpuid_apic:
        push    rbx
        mov     eax, 1
        cpuid
        shr     edx, 9
        and     edx, 1
        log     edx
        pop     rbx
        ret

# The page goes where the base says, onto RAM too, which is as it was when the page has gone.
relocate:
        mov     dword ptr [0x80030], 0x12345678
        wrmsr_  0x1b, 0xfed40900
        mov     eax, [rbx + APIC_VERSION]
        log     eax
        mov     ecx, 0xfed40000
        mov     eax, [rcx + APIC_VERSION]
        and     eax, 0xf0
        log     eax
        wrmsr_  0x1b, 0x80900
        mov     eax, [0x80030]
        and     eax, 0xf0
        log     eax
        mov     dword ptr [0x80080], 0x40
        mov     rax, cr8
        log     eax
        wrmsr_  0x1b, 0xfee00900
        mov     eax, [0x80030]
        log     eax
        mov     eax, [0x80080]
        log     eax
        mov     eax, [rbx + TPR]
        log     eax
        end

# Reserved bits of the base.
reserved:
        handle  13, skip_msr
        wrmsr_  0x1b, 0xfee00901
        wrmsr_  0x1b, 0xfee00b00
        mov     eax, 0x80000008
        cpuid
        push    rbx
        mov     ecx, eax
        pop     rbx
        mov     ebx, 0xfee00000
        mov     edx, 1
        sub     cl, 32
        shl     edx, cl
        mov     eax, 0xfee00900
        mov     ecx, 0x1b
        wrmsr
        wrmsr_  0x1b, 0xfee00900, 0x80000000
        rdmsr_  0x1b
        log     eax
        log     edx
        end

# The modes: what may follow what. 1, 2, 3 mark what must pass.
modes:
        handle  13, skip_msr
        wrmsr_  0x1b, 0xfee00500        # xAPIC to invalid
        wrmsr_  0x1b, 0xfee00d00        # xAPIC to x2APIC
        logi    1
        wrmsr_  0x1b, 0xfee00500
        wrmsr_  0x1b, 0xfee00900        # x2APIC to xAPIC
        wrmsr_  0x1b, 0xfee00100        # x2APIC to disabled
        logi    2
        wrmsr_  0x1b, 0xfee00500
        wrmsr_  0x1b, 0xfee00d00        # disabled to x2APIC
        wrmsr_  0x1b, 0xfee00900        # disabled to xAPIC
        logi    3
        rdmsr_  0x1b
        log     eax
        end

# x2APIC mode: registers are MSRs, the page is gone.
x2apic:
        handle  13, skip_msr
        handle  0x41, log_41_x2
        handle  0x42, log_42_x2
        rdmsr_  0x803                   # not before it is on
        wrmsr_  0x1b, 0xfee00d00
        rdmsr_  0x803
        and     eax, 0xf0
        log     eax
        mov     eax, [rbx + APIC_VERSION]
        log     eax
        mov     eax, [rbx + TPR]
        log     eax
        logi    1
        rdmsr_  0x802
        log     eax
        wrmsr_  0x802, 1                # the ID cannot be written
        rdmsr_  0x80d
        log     eax
        wrmsr_  0x80d, 1                # nor the logical one
        wrmsr_  0x80b, 1                # EOI takes 0 only
        wrmsr_  0x808, 0x100            # TPR has 8 bits
        wrmsr_  0x828, 1                # ESR takes 0 only
        rdmsr_  0x80e                   # there is no DFR
        rdmsr_  0x831                   # the ICR is one MSR
        logi    2
        wrmsr_  0x80f, 0x1ff
        wrmsr_  0x808, 0x30
        mov     rax, cr8
        log     eax
        wrmsr_  0x808, 0
        wrmsr_  0x83f, 0x41             # SELF IPI
        wrmsr_  0x830, 0x4042, 0        # ICR, destination 0
        rdmsr_  0x822                   # IRR of 0x40-0x5f
        log     eax
        sti
        nop
        cli
        end
log_41_x2:
        logi    0x41
        jmp     _eoi_x2
log_42_x2:
        logi    0x42
_eoi_x2:
        push    rax
        push    rcx
        push    rdx
        wrmsr_  0x80b, 0
        pop     rdx
        pop     rcx
        pop     rax
        iretq

# Priorities.

# Three requests wait: the highest comes first, each of the others when the one above it has ended.
waiting:
        handle  0x31, log_31
        handle  0x41, log_41
        handle  0x55, log_55
        self_ipi 0x41
        self_ipi 0x31
        self_ipi 0x55
        mov     eax, [rbx + IRR + 0x10]
        log     eax
        mov     eax, [rbx + IRR + 0x20]
        log     eax
        sti
        nop
        cli
        end
log_31: logging_handler 0x31
log_41: logging_handler 0x41
log_42: logging_handler 0x42
log_55: logging_handler 0x55
log_61: logging_handler 0x61

# Handlers nest by class: 0x51 gets into the handler of 0x41, 0x4f and 0x35 wait for its end.
nesting:
        handle  0x35, log_35
        handle  0x41, nest_41
        handle  0x4f, log_4f
        handle  0x51, nest_51
        sti
        self_ipi 0x41
        nop
        cli
        end
nest_41:
        logi    0x41
        sti
        self_ipi 0x35
        self_ipi 0x4f
        self_ipi 0x51
        jmp     1f
1:      mov     eax, [rbx + PPR]
        log     eax
        mov     eax, [rbx + ISR + 0x20]
        log     eax
        cli
        eoi
        logi    0x1041
        iretq
nest_51:
        mov     eax, [rbx + PPR]
        log     eax
        mov     eax, [rbx + ISR + 0x20]
        log     eax
        eoi
        iretq
log_35: logging_handler 0x35
log_4f: logging_handler 0x4f

# TPR holds its class and those below; CR8 is its high half.
task_priority:
        handle  0x4f, log_4f
        handle  0x61, log_61
        mov     dword ptr [rbx + TPR], 0x50
        sti
        self_ipi 0x4f
        self_ipi 0x61
        jmp     1f
1:      logi    1
        mov     rax, cr8
        log     eax
        mov     dword ptr [rbx + TPR], 0x40
        jmp     1f
1:      logi    2
        mov     dword ptr [rbx + TPR], 0x30
        jmp     1f
1:      logi    3
        mov     eax, 4
        mov     cr8, rax
        self_ipi 0x4f
        jmp     1f
1:      mov     eax, [rbx + TPR]
        log     eax
        mov     eax, 3
        mov     cr8, rax
        nop
        logi    4
        end

# Software-disabled by SVR it takes nothing and masks its LVT entries, for good; it can still send.
software_disable:
        handle  0x41, log_41
        mov     dword ptr [rbx + LVT_TIMER], 0x41
        mov     dword ptr [rbx + SVR], 0xff
        sti
        self_ipi 0x41
        mov     eax, [rbx + LVT_TIMER]
        log     eax
        mov     dword ptr [rbx + LVT_TIMER], 0x41
        mov     dword ptr [rbx + SVR], 0x1ff
        mov     eax, [rbx + LVT_TIMER]
        log     eax
        logi    1
        self_ipi 0x41
        jmp     1f
1:      end

# IPIs between four CPUs. Each CPU counts what it takes.

.macro to_four low, destination, count
        icr     \low, \destination
        add     r12d, \count
        call    _settle
.endm

# Wait until r12d interrupts 0x40 have been taken; then a lower one at each CPU, behind which none can be waiting.
_settle:
        sti
1:      pause
        mov     eax, [COUNTS + 0x100]
        add     eax, [COUNTS + 0x500]
        add     eax, [COUNTS + 0x900]
        add     eax, [COUNTS + 0xd00]
        cmp     eax, r12d
        jb      1b
        inc     r13d
        icr     ALL | 0x30
1:      pause
        cmp     [COUNTS + 0xc0], r13d
        jb      1b
        cmp     [COUNTS + 0x4c0], r13d
        jb      1b
        cmp     [COUNTS + 0x8c0], r13d
        jb      1b
        cmp     [COUNTS + 0xcc0], r13d
        jb      1b
        cli
        mov     ecx, 0                  # a byte a CPU
        mov     edx, 4
        mov     eax, COUNTS + 0xd00
1:      shl     ecx, 8
        add     ecx, [rax]
        mov     dword ptr [rax], 0
        sub     eax, 0x400
        dec     edx
        jnz     1b
        xor     r12d, r12d
        log     ecx
        ret
count_30: counting_handler 0x30
count_40: counting_handler 0x40

_four:  handle  0x30, count_30
        handle  0x40, count_40
        mov     r14d, 3
        call    start_others
        xor     r12d, r12d
        xor     r13d, r13d
        ret

# Each log entry has a byte for each CPU, CPU 0's the lowest.
physical:
        call    _four
        to_four ASSERT | 0x40, 0x00000000, 1
        to_four ASSERT | 0x40, 0x01000000, 1
        to_four ASSERT | 0x40, 0x03000000, 1
        to_four ASSERT | 0x40, 0xff000000, 4
        to_four ASSERT | 0x40, 0x09000000, 0
        end

shorthands:
        call    _four
        to_four SELF | 0x40, 0x03000000, 1
        to_four ALL | 0x40, 0x03000000, 4
        to_four OTHERS | 0x40, 0x00000000, 3
        end

# Logical IDs 1, 2, 4 and 8; and in the cluster model members 1 and 2 of clusters 1 and 2.
flat:
        lea     rax, [rip + _flat_id]
        jmp     _logical
_flat_id:
        mov     eax, 0x1000000
        mov     ecx, r15d
        shl     eax, cl
        mov     [rbx + LDR], eax
        mov     dword ptr [rbx + DFR], 0xffffffff
        ret
cluster:
        lea     rax, [rip + _cluster_id]
        jmp     _logical
_cluster_id:
        mov     ecx, r15d
        and     ecx, 1
        mov     eax, 0x1000000
        shl     eax, cl
        mov     ecx, r15d
        shr     ecx, 1
        inc     ecx
        shl     ecx, 28
        or      eax, ecx
        mov     [rbx + LDR], eax
        mov     dword ptr [rbx + DFR], 0x0fffffff
        ret
_logical:
        mov     [SCRATCH], rax
        call    [SCRATCH]
        handle  0x50, run_it
        call    _four
        mov     dword ptr [SCRATCH + 8], 0
        icr     OTHERS | 0x50
        await   SCRATCH + 8, 3
        lea     rax, [rip + _flat_id]
        cmp     [SCRATCH], rax
        jne     1f
        to_four LOGICAL | ASSERT | 0x40, 0x01000000, 1
        to_four LOGICAL | ASSERT | 0x40, 0x0a000000, 2
        to_four LOGICAL | ASSERT | 0x40, 0xff000000, 4
        to_four LOGICAL | ASSERT | 0x40, 0xf0000000, 0
        end
1:      to_four LOGICAL | ASSERT | 0x40, 0x11000000, 1
        to_four LOGICAL | ASSERT | 0x40, 0x13000000, 2
        to_four LOGICAL | ASSERT | 0x40, 0x22000000, 1
        to_four LOGICAL | ASSERT | 0x40, 0x2f000000, 2
        to_four LOGICAL | ASSERT | 0x40, 0x31000000, 0
        to_four LOGICAL | ASSERT | 0x40, 0xff000000, 4
        end
run_it: push    rax
        push    rcx
        call    [SCRATCH]
        pop     rcx
        pop     rax
        eoi
        lock inc dword ptr [SCRATCH + 8]
        iretq

# Lowest priority among logical 1, 2, 4 and 8, with task priorities 2, 1, 0, 2; then 0, 1, 2, 2.
lowest:
        handle  0x51, set_priority
        handle  0x50, run_it
        handle  0x52, raise_2
        lea     rax, [rip + _flat_id]
        mov     [SCRATCH], rax
        call    rax
        call    _four
        mov     dword ptr [SCRATCH + 8], 0
        icr     OTHERS | 0x50
        await   SCRATCH + 8, 3
        icr     ALL | 0x51
        sti
        await   SCRATCH + 8, 7
        cli
        to_four LOGICAL | LOWEST | ASSERT | 0x40, 0x0f000000, 1
        to_four LOGICAL | LOWEST | ASSERT | 0x40, 0x0b000000, 1
        to_four LOGICAL | LOWEST | ASSERT | 0x40, 0x08000000, 1
        icr     ASSERT | 0x52, 0x02000000
        await   SCRATCH + 8, 8
        mov     eax, 0
        mov     cr8, rax
        to_four LOGICAL | LOWEST | ASSERT | 0x40, 0x0f000000, 1
        end
set_priority:
        push    rax
        push    rcx
        mov     eax, 0x02000102
        mov     ecx, r15d
        shl     ecx, 3
        shr     eax, cl
        and     eax, 0xf
        mov     cr8, rax
        pop     rcx
        pop     rax
        eoi
        lock inc dword ptr [SCRATCH + 8]
        iretq
raise_2:
        push    rax
        mov     eax, 2
        mov     cr8, rax
        pop     rax
        eoi
        lock inc dword ptr [SCRATCH + 8]
        iretq

# x2APIC on four CPUs: physical, logical, broadcasts, shorthands.
x2apic_destinations:
        handle  0x40, x2_count
        handle  13, skip_msr
        mov     r14d, 3
        lea     rax, [rip + _x2_other]
        mov     [OTHERS_AT], rax
        icr     OTHERS | INIT | ASSERT
        icr     OTHERS | STARTUP | ASSERT | 0x10
        await   PARKED, 3
        wrmsr_  0x1b, 0xfee00d00
        wrmsr_  0x80f, 0x1ff
        xor     r12d, r12d
        .macro  x2 low, destination, count
        wrmsr_  0x830, \low, \destination
        add     r12d, \count
        call    _x2_settle
        .endm
        x2      0x4040, 2, 1
        x2      0x4040, 0xffffffff, 4
        x2      0x4840, 0xa, 2          # logical: members 1 and 3 of cluster 0
        x2      0x4840, 0x1000f, 0      # cluster 1
        x2      0x40040, 0, 1
        x2      0x80040, 0, 4
        x2      0xc0040, 0, 3
        end
_x2_other:
        rdmsr_  0x1b
        or      eax, 0x400
        wrmsr
        wrmsr_  0x80f, 0x1ff
        jmp     park
_x2_settle:
        sti
1:      pause
        mov     eax, [COUNTS + 0x100]
        add     eax, [COUNTS + 0x500]
        add     eax, [COUNTS + 0x900]
        add     eax, [COUNTS + 0xd00]
        cmp     eax, r12d
        jb      1b
        cli
        mov     ecx, 0
        mov     edx, 4
        mov     eax, COUNTS + 0xd00
1:      shl     ecx, 8
        add     ecx, [rax]
        mov     dword ptr [rax], 0
        sub     eax, 0x400
        dec     edx
        jnz     1b
        xor     r12d, r12d
        log     ecx
        ret
x2_count:
        push    rax
        push    rcx
        push    rdx
        mov     eax, r15d
        shl     eax, 10
        inc     dword ptr [COUNTS + 0x100 + rax]
        wrmsr_  0x80b, 0
        pop     rdx
        pop     rcx
        pop     rax
        iretq

# INIT stops a CPU wherever it is, a start-up message starts it, a second one does nothing.
init:
        lea     rax, [rip + _spin]
        mov     [OTHERS_AT], rax
        icr     INIT | ASSERT, 0x01000000
        icr     STARTUP | ASSERT | 0x10, 0x01000000
        icr     STARTUP | ASSERT | 0x10, 0x01000000
        await   SCRATCH + 8, 1000
        mov     eax, [SCRATCH]
        log     eax                     # how often it has been started
        icr     INIT | ASSERT, 0x01000000
        icr     0x8000 | INIT, 0x01000000
        call    _delay
        mov     ecx, [SCRATCH + 8]
        call    _delay
        sub     ecx, [SCRATCH + 8]
        log     ecx                     # it stands still
        icr     STARTUP | ASSERT | 0x10, 0x01000000
        await   SCRATCH, 2
        mov     eax, [SCRATCH]
        log     eax
        end
_spin:  cli
        lock inc dword ptr [SCRATCH]
1:      inc     dword ptr [SCRATCH + 8]
        jmp     1b
_delay: push    rcx
        mov     ecx, 20000
1:      pause
        loop    1b
        pop     rcx
        ret

# NMIs.

# NMIs sent while one is in service are one more, behind its IRET.
nmi:
        handle  2, nmi_handler
        icr     NMI | ASSERT
        await   SCRATCH, 2
        call    _delay
        mov     eax, [SCRATCH]
        log     eax
        end
nmi_handler:
        push    rcx
        push    rax
        inc     dword ptr [SCRATCH]
        cmp     dword ptr [SCRATCH], 1
        jne     1f
        logi    1
        mov     ecx, 10
2:      icr     NMI | ASSERT
        loop    2b
        logi    2
        pop     rax
        pop     rcx
        iretq
1:      logi    3
        pop     rax
        pop     rcx
        iretq

# Two CPUs send CPU 0 an NMI each at the same time, 1000 times: it takes two each time.
two_nmis:
        handle  2, count_nmi
        handle  0x44, flushed
        lea     rax, [rip + _sender]
        mov     [OTHERS_AT], rax
        icr     INIT | ASSERT, 0x01000000
        icr     STARTUP | ASSERT | 0x10, 0x01000000
        sti
        xor     r12d, r12d
1:      inc     r12d
        mov     dword ptr [SCRATCH + 0x10], 0   # NMIs taken
        mov     dword ptr [SCRATCH + 0x18], 0   # the other's interrupt has come
        mov     [SCRATCH + 0x20], r12d
2:      pause
        cmp     [SCRATCH + 0x28], r12d
        jne     2b
        icr     NMI | ASSERT
3:      pause
        cmp     dword ptr [SCRATCH + 0x18], 0
        je      3b
        cmp     dword ptr [SCRATCH + 0x10], 2
        jne     4f
        mov     [SCRATCH + 0x30], r12d
5:      pause
        cmp     [SCRATCH + 0x38], r12d
        jne     5b
        cmp     r12d, 1000
        jne     1b
4:      log     r12d
        mov     eax, [SCRATCH + 0x10]
        log     eax
        end
_sender:
        xor     r12d, r12d
1:      inc     r12d
        mov     [SCRATCH + 0x28], r12d
2:      pause
        cmp     [SCRATCH + 0x20], r12d
        jne     2b
        icr     NMI | ASSERT, 0
        icr     ASSERT | 0x44, 0
        mov     [SCRATCH + 0x38], r12d
3:      pause
        cmp     [SCRATCH + 0x30], r12d
        jne     3b
        jmp     1b
count_nmi:
        inc     dword ptr [SCRATCH + 0x10]
        iretq
flushed:
        mov     dword ptr [SCRATCH + 0x18], 1
        eoi
        iretq

# Errors: an illegal vector sent, an illegal register touched; the error interrupt; what a write of ESR latches.
errors:
        handle  0x60, log_error
        mov     dword ptr [rbx + LVT_ERROR], 0x60
        mov     dword ptr [rbx + ESR], 0
        sti
        icr     SELF | 5
        jmp     1f
1:      mov     eax, [rbx + 0x400]
        log     eax
        mov     dword ptr [rbx + ESR], 0
        mov     eax, [rbx + ESR]
        log     eax
        mov     dword ptr [rbx + ESR], 0
        mov     eax, [rbx + ESR]
        log     eax
        end
log_error: logging_handler 0x60

# The timer.

one_shot:
        handle  0x41, count_41
        mov     dword ptr [rbx + LVT_TIMER], 0x41
        mov     dword ptr [rbx + TDCR], 0xb
        rdtsc
        mov     r12d, eax
        mov     dword ptr [rbx + TMICT], 0x100000
        sti
        await   COUNTS + 0x104, 1
        rdtsc
        sub     eax, r12d
        cmp     eax, 0x80000
        seta    cl
        movzx   ecx, cl
        log     ecx                     # time has passed
        call    _delay
        mov     eax, [rbx + TMCCT]
        log     eax
        mov     eax, [rbx + TMICT]
        log     eax
        mov     eax, [COUNTS + 0x104]
        log     eax
        end
count_41: counting_handler 0x41

# The mode's changes: the count goes on; one-shot ends at zero, periodic starts again; stopped, it stays at zero.
mode_changes:
        .set    COUNT, 10000000
        mov     dword ptr [rbx + LVT_TIMER], 0x10041
        mov     dword ptr [rbx + TDCR], 0xb
        mov     dword ptr [rbx + TMICT], COUNT
        call    _count                  # more than half
        pass_   6000000
        call    _count                  # less
        mov     dword ptr [rbx + LVT_TIMER], 0x30041
        call    _count                  # still
        mov     ecx, [rbx + TMICT]
        log     ecx
        pass_   6000000
        call    _count                  # it started again
        pass_   6000000
        mov     dword ptr [rbx + LVT_TIMER], 0x10041
        call    _count
        pass_   9000000
        call    _count                  # it ended
        mov     dword ptr [rbx + LVT_TIMER], 0x30041
        call    _count
        mov     dword ptr [rbx + TMICT], COUNT
        mov     dword ptr [rbx + TMICT], 0
        call    _count
        end
_count: mov     eax, [rbx + TMCCT]      # log 2 where more than half is left, 1 for less, 0 for nothing
        xor     ecx, ecx
        test    eax, eax
        setnz   cl
        cmp     eax, COUNT / 2
        jbe     1f
        inc     ecx
1:      log     ecx
        ret

# Periodic interrupts, until the entry is masked.
periodic:
        handle  0x41, count_41
        mov     dword ptr [rbx + LVT_TIMER], 0x20041
        mov     dword ptr [rbx + TDCR], 0x3
        mov     dword ptr [rbx + TMICT], 10000
        sti
        await   COUNTS + 0x104, 5
        mov     dword ptr [rbx + LVT_TIMER], 0x30041
        call    _delay
        mov     ecx, [COUNTS + 0x104]
        call    _delay
        sub     ecx, [COUNTS + 0x104]
        log     ecx
        end

# The TSC deadline: one that is past interrupts with the WRMSR; one to come, at its time; 0 disarms.
deadline:
        handle  0x41, log_41
        handle  0x42, note_time
        mov     dword ptr [rbx + LVT_TIMER], 0x40041
        sti
        rdtsc
        mov     ecx, 0x6e0
        wrmsr
        nop
        logi    1
        rdmsr_  0x6e0
        log     eax
        log     edx
        mov     dword ptr [rbx + LVT_TIMER], 0x40042
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        add     rax, 5000000
        mov     r12, rax
        mov     rdx, rax
        shr     rdx, 32
        mov     ecx, 0x6e0
        wrmsr
        await   SCRATCH, 1
        cmp     r13, r12
        setae   al
        movzx   ecx, al
        log     ecx
        rdmsr_  0x6e0
        log     eax
        mov     eax, 0xffffffff
        mov     edx, 0xffff
        mov     ecx, 0x6e0
        wrmsr
        mov     dword ptr [rbx + LVT_TIMER], 0x41       # the mode's change disarms
        mov     dword ptr [rbx + LVT_TIMER], 0x40041
        rdmsr_  0x6e0
        log     eax
        end
note_time:
        push    rax
        push    rdx
        rdtsc
        mov     r13, rdx
        shl     r13, 32
        or      r13, rax
        inc     dword ptr [SCRATCH]
        eoi
        pop     rdx
        pop     rax
        iretq
