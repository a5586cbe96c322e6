# How events get into 64-bit code: shadows, strings, stack switches, single steps, breakpoints, faults of registers.

        .include "pc64.inc"

        .set USER_CODE, 0x2b
        .set USER_DATA, 0x23

# An NMI does not get in right behind STI.
nmi_behind_sti:
        handle  2, _note_rip
        lea     r12, [rip + _behind_sti]
        mov     ecx, 200
1:      push    rcx
        mov     dword ptr [SCRATCH], 0
        icr     NMI | ASSERT
        sti
_behind_sti:
        nop
        nop
        cli
2:      cmp     dword ptr [SCRATCH], 0
        je      2b
        pop     rcx
        loop    1b
        mov     eax, [SCRATCH + 8]
        log     eax
        end
_note_rip:
        inc     dword ptr [SCRATCH]
        cmp     [rsp], r12
        jne     1f
        inc     dword ptr [SCRATCH + 8]
1:      iretq

# Timer interrupts in a long REP STOSB: at the instruction, with RCX telling what is left, and nothing is lost.
rep:
        handle  0x41, _in_rep
        mov     dword ptr [rbx + LVT_TIMER], 0x20041
        mov     dword ptr [rbx + TDCR], 0xb
        mov     dword ptr [rbx + TMICT], 50000
        lea     r12, [rip + _rep]
        mov     r13, rdi
        mov     edx, 3000
        sti
1:      mov     edi, 0x100000
        mov     ecx, 0x8000
        mov     al, dl
_rep:   rep     stosb
        cmp     edi, 0x108000
        jne     2f
        test    rcx, rcx
        jnz     2f
        cmp     dword ptr [SCRATCH], 3
        jae     2f
        dec     edx
        jnz     1b
2:      cli
        mov     eax, [0x107ffc]
        mov     rcx, rdi
        mov     rdi, r13
        log     ecx
        mov     ecx, eax
        movzx   eax, dl
        imul    eax, eax, 0x1010101
        sub     ecx, eax
        log     ecx
        mov     ecx, [SCRATCH]
        log     ecx
        mov     ecx, [SCRATCH + 8]
        log     ecx
        end
_in_rep:
        push    rax
        cmp     [rsp + 8], r12
        jne     1f
        test    ecx, ecx
        jz      1f
        inc     dword ptr [SCRATCH]
        lea     eax, [rdi + rcx]        # what is done and what is left is the whole
        cmp     eax, 0x108000
        je      1f
        inc     dword ptr [SCRATCH + 8]
1:      pop     rax
        eoi
        iretq

# An interrupt of a program at CPL 3: on the stack of the TSS, with the program's SS and RSP; back by IRET.
user:
        handle  0x41, _log_frame
        mov     byte ptr [IDT + 0x42 * 16 + 5], 0xee
        handle  0x42, _back
        mov     byte ptr [IDT + 0x42 * 16 + 5], 0xee
        push    USER_DATA
        push    0x2f000
        push    0x202
        push    USER_CODE
        lea     rax, [rip + _in_user]
        push    rax
        iretq
_in_user:
        self_ipi 0x41
        jmp     1f
1:      logi    1
        int     0x42
        ud2
_log_frame:
        mov     rax, rsp
        log     eax
        mov     eax, [rsp + 8]
        log     eax
        mov     eax, [rsp + 24]
        log     eax
        mov     eax, [rsp + 32]
        log     eax
        mov     eax, [rsp + 16]
        and     eax, 0x200
        log     eax
        eoi
        iretq
_back:  logi    2
        end

# Single steps: the trap is behind each instruction, also such as an engine has to do itself. Logs offsets.
single_step:
        handle  1, _step
        handle  0x41, log_41
        mov     ecx, 0x1b
        rdmsr
        mov     r8d, eax
        mov     r9d, edx
        xor     r13d, r13d
        pushfq
        or      dword ptr [rsp], 0x100
        lea     r12, [rip + _stepped]
        popfq
_stepped:
        nop                             # at 0
        rdmsr                           # 1
        wrmsr                           # 3
        mov     rax, cr8                # 5
        cpuid                           # 9
        out     0x80, al                # 11
        mov     eax, [rbp + 0x10]       # 13
        .byte   0x8e, 0xd1              # 16: mov ss, ecx (of 0)
        nop                             # 18
        jmp     1f                      # 19
1:      pushfq                          # 21
        and     dword ptr [rsp], ~0x100 # 22
        popfq                           # 29
        nop                             # 30
        end
_step:  push    rax
        mov     rax, [rsp + 8]
        sub     rax, r12
        log     eax
        mov     rax, dr6
        and     eax, 0x4000
        jnz     1f
        logi    0xbad
1:      xor     eax, eax
        mov     dr6, rax
        pop     rax
        xor     ecx, ecx                # what cpuid and others leave is not wanted
        mov     ecx, 0x1b
        mov     eax, r8d
        mov     edx, r9d
        mov     ebx, 0xfee00000
        cmp     dword ptr [rsp], 0
        push    rax
        mov     rax, [rsp + 8]
        sub     rax, r12
        cmp     eax, 16                 # SS is null in 64-bit code at CPL 0
        jne     1f
        xor     ecx, ecx
1:      pop     rax
        iretq
log_41: logging_handler 0x41

# A waiting interrupt while single-stepping: the trap first; the handler runs without TF, and its IRET brings that back.
step_and_interrupt:
        handle  1, _step_simple
        handle  0x41, _no_tf
        self_ipi 0x41
        lea     r12, [rip + _stepped2]
        pushfq
        or      dword ptr [rsp], 0x300
        popfq
_stepped2:
        nop
        nop
        pushfq
        and     dword ptr [rsp], ~0x300
        popfq
        nop
        end
_step_simple:
        push    rax
        mov     rax, [rsp + 8]
        sub     rax, r12
        log     eax
        pop     rax
        iretq
_no_tf: push    rax
        pushfq
        mov     eax, [rsp]
        add     rsp, 8
        and     eax, 0x300
        log     eax
        mov     eax, [rsp + 24]
        and     eax, 0x300
        log     eax
        logi    0x41
        pop     rax
        eoi
        iretq

# A breakpoint on an instruction: once, for RF lets it go on. And one on a port, behind the access.
breakpoint:
        handle  1, _break
        lea     r12, [rip + _broken]
        lea     rax, [rip + _broken]
        mov     dr0, rax
        mov     eax, 0x80
        mov     dr1, rax
        mov     rax, cr4
        or      eax, 8                  # DE
        mov     cr4, rax
        mov     eax, 0x20040a           # G0 on execution, G1 on I/O of 1 byte
        mov     dr7, rax
        nop
_broken:
        nop                             # at 0
        nop
        mov     eax, 0x200408
        mov     dr7, rax
        logi    1
        out     0x80, al
_behind_out:
        xor     eax, eax
        mov     dr7, rax
        end

# A breakpoint on a store's address traps behind it.
watchpoint:
        handle  1, _break
        lea     r12, [rip + _watched]
        mov     eax, SCRATCH + 0x20
        mov     dr1, rax
        mov     eax, 0xd00408           # G1 on writes of 4 bytes
        mov     dr7, rax
_watched:
        mov     eax, [SCRATCH + 0x20]
        mov     dword ptr [SCRATCH + 0x20], 5
        nop
        xor     eax, eax
        mov     dr7, rax
        end
_break: push    rax
        lea     rax, [rip + _behind_out]
        cmp     [rsp + 8], rax
        je      1f
        mov     rax, [rsp + 8]
        sub     rax, r12
        log     eax
1:        mov     rax, dr6
        and     eax, 0x400f
        log     eax
        xor     eax, eax
        mov     dr6, rax
        or      dword ptr [rsp + 24], 0x10000
        pop     rax
        iretq

# Addresses in MSRs must be canonical.
canonical:
        handle  13, skip_msr
        mov     r12, rdi
        .irp    index, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000082, 0xc0000083, 0x175, 0x176
        wrmsr_  \index, 0x11223344, 0x1234
        rdmsr_  \index
        log     eax
        log     edx
        wrmsr_  \index, 0, 0x12345678
        rdmsr_  \index
        log     edx
        wrmsr_  \index, 0, 0xffff8000
        rdmsr_  \index
        log     edx
        wrmsr_  \index, 0
        .endr
        end

# Bits of CR4 that CPUID does not offer, and clearing PAE in long mode: #GP, and nothing changes.
control_registers:
        handle  13, _skip_mov
        mov     rax, cr4
        mov     r12, rax
        .irp    bit, 12, 13, 14, 15, 17, 22, 25, 31
        mov     rax, r12
        bts     rax, \bit
        mov     cr4, rax
        .endr
        mov     rax, r12
        bts     rax, 40
        mov     cr4, rax
        mov     rax, r12
        btr     rax, 5                  # PAE, in long mode
        mov     cr4, rax
        mov     rax, cr4
        cmp     rax, r12
        setne   al
        movzx   eax, al
        log     eax
        end
_skip_mov:
        logi    13
        add     rsp, 8
        add     qword ptr [rsp], 3
        iretq
