# Hardware tasks: switches by CALL, JMP, IRET, interrupts and exceptions. Intel SDM vol. 3A, chapter 8.

        .include "pc32.inc"

# Log TR, and the types of the two tasks' descriptors: 9 is available, 11 busy.
.macro log_tasks
        push    eax
        str     eax
        movzx   eax, ax
        log     eax
        movzx   eax, byte ptr [GDT + MAIN + 5]
        and     eax, 0xf
        log     eax
        movzx   eax, byte ptr [GDT + OTHER + 5]
        and     eax, 0xf
        log     eax
        pop     eax
.endm

.macro log_nt
        pushfd
        shr     dword ptr [esp], 14
        and     dword ptr [esp], 1
        call    _log
.endm

# CALL: nested, back by IRET; called again it goes on behind its IRET.
calls:  task    _called
        mov     ecx, 0x1111
        far_call OTHER
        log_tasks
        log_nt
        log     ecx
        far_call OTHER
        log     99
        end
_called:
        log_tasks
        log_nt
        movzx   eax, word ptr [TSS2]
        log     eax
        mov     eax, cr0
        shr     eax, 3
        and     eax, 1
        log     eax                     # CR0.TS
        clts
        mov     eax, [MAIN_TSS + 44]
        log     eax                     # the caller's ECX, saved
        mov     ecx, 0x2222
        iretd
        log     77
        iretd

# JMP: not nested, the one left is available.
jumps:  task    _jumped
        far_jmp OTHER
        log_tasks
        log_nt
        end
_jumped:
        log_tasks
        log_nt
        far_jmp MAIN

# Through a task gate in the GDT.
gate:   task    _gated
        mov     dword ptr [GDT + GATE], OTHER << 16
        mov     dword ptr [GDT + GATE + 4], 0x8500
        far_call GATE
        log_tasks
        end
_gated: log_tasks
        iretd
        jmp     _gated

# Interrupts and exceptions by task gates: INT n, INT3, INTO, an IPI, an NMI, #DE, #UD.
interrupts:
        task    _interrupted
        task_gate 0x40, OTHER
        task_gate 0, OTHER
        task_gate 2, OTHER
        task_gate 3, OTHER
        task_gate 4, OTHER
        task_gate 6, OTHER
        int     0x40
        log     1
        int3
        log     2
        mov     al, 127
        add     al, 127
        into
        log     3
        sti
        mov     dword ptr [ebx + ICR], SELF | 0x40
        jmp     1f
1:      cli
        log     4
        mov     dword ptr [ebx + ICR], NMI | 0x4000
        jmp     1f
1:      jmp     1f
1:      log     5
        mov     dword ptr [SCRATCH], 1
        mov     eax, 7
        xor     edx, edx
        xor     ecx, ecx
_div:   div     ecx
        log     eax
        mov     dword ptr [SCRATCH], 2
_undefined:
        ud2
        log     6
        mov     dword ptr [SCRATCH], 0
        mov     dword ptr [ebx + ICR], NMI | 0x4000     # the first one's IRET has unmasked NMIs
        jmp     1f
1:      jmp     1f
1:      log     7
        end
_interrupted:
        mov     eax, [MAIN_TSS + TSS_EFLAGS]
        shr     eax, 9
        and     eax, 1
        log     eax                     # whether interrupts were open
        log_nt
        cmp     dword ptr [SCRATCH], 1
        jne     1f
        mov     eax, [MAIN_TSS + TSS_EIP]
        sub     eax, offset _div
        log     eax                     # a fault is at the instruction
        mov     dword ptr [MAIN_TSS + 44], 7    # its ECX
1:      cmp     dword ptr [SCRATCH], 2
        jne     1f
        mov     eax, [MAIN_TSS + TSS_EIP]
        sub     eax, offset _undefined
        log     eax
        add     dword ptr [MAIN_TSS + TSS_EIP], 2
1:      cmp     dword ptr [SCRATCH], 0
        jne     1f
        mov     eax, [ebx + 0x120]      # ISR of 0x40
        test    eax, 1
        jz      1f
        eoi
1:      iretd
        jmp     _interrupted

# Paging on: 4 MiB pages as they are, of which 4 MiB to 8 MiB are not there. In the other directory, at 0x61000, they
# are the first 4 MiB once more.
_paging:
        mov     edx, 0x60000
        mov     eax, 0x83
        mov     ecx, 1024
1:      mov     [edx], eax
        mov     [edx + 0x1000], eax
        add     edx, 4
        add     eax, 0x400000
        loop    1b
        mov     dword ptr [0x60000 + 4], 0
        mov     dword ptr [0x61000 + 4], 0x83
        mov     eax, cr4
        or      eax, 0x10
        mov     cr4, eax
        mov     eax, 0x60000
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        ret

# A page fault's error code is on the handling task's stack, and that task has page tables of its own.
page_fault:
        call    _paging
        task    _faulted
        mov     dword ptr [TSS2 + TSS_CR3], 0x61000
        task_gate 14, OTHER
        mov     dword ptr [0x400000 + SCRATCH], 0x1234
        mov     eax, [SCRATCH]
        log     eax
        mov     eax, cr3
        log     eax
        end
_faulted:
        pop     eax
        log     eax
        lea     eax, [esp - STACK2]
        log     eax
        mov     eax, cr2
        log     eax
        mov     eax, cr3
        log     eax
        mov     eax, [0x400000 + LOG_AT]
        sub     eax, [LOG_AT]
        log     eax                     # its own mapping
        mov     dword ptr [0x60000 + 4], 0x83
        iretd
        jmp     _faulted

# The stack is not there where a division error, then an INT, is delivered: a page fault, by a task that maps it; then
# the instruction again.
serial: call    _paging
        handle  0, _divide
        handle  0x41, _int
        task    _mapped
        task_gate 14, OTHER
        mov     esp, 0x450800
        mov     eax, 21
        xor     edx, edx
        xor     ecx, ecx
_divides:
        div     ecx
        mov     esp, STACK2 + 0x800
        log     eax
        mov     dword ptr [0x60000 + 4], 0
        mov     eax, cr3
        mov     cr3, eax
        mov     esp, 0x450800
_ints:  int     0x41
        mov     esp, STACK2 + 0x800
        log     5
        end
_divide:
        mov     ecx, 7
        iretd
_int:   iretd
_mapped:
        pop     eax
        log     eax
        mov     eax, cr2
        log     eax
        mov     eax, [MAIN_TSS + TSS_EIP]
        sub     eax, offset _divides
        log     eax
        mov     dword ptr [0x60000 + 4], 0x83
        iretd
        jmp     _mapped

# What cannot be: logs vector, error code of each.
faults: handle  13, _gp
        handle  10, _ts
        handle  11, _np
        task    _called
        mov     byte ptr [GDT + OTHER + 5], 0x8b        # busy
        far_call OTHER
        mov     byte ptr [GDT + OTHER + 5], 0x09        # not present
        far_call OTHER
        mov     byte ptr [GDT + OTHER + 5], 0x89
        mov     byte ptr [GDT + OTHER], 0x66            # too short
        far_call OTHER
        mov     byte ptr [GDT + OTHER], 0x67
        log     1
        task_gate 0x40, OTHER
        mov     byte ptr [GDT + OTHER + 5], 0x8b
        int     0x40
        task_gate 0x40, DATA32
        int     0x40
        log     2
        pushfd                          # IRET of a task that is not nested in one
        or      dword ptr [esp], 0x4000
        popfd
        mov     word ptr [MAIN_TSS], DATA32
        iretd
        .space  6, 0x90
        pushfd
        and     dword ptr [esp], ~0x4000
        popfd
        log_tasks
        end
_gp:    log     13
        jmp     _skip
_ts:    log     10
        jmp     _skip
_np:    log     11
_skip:  push    eax                     # log the error code; step over 7 bytes, or INT's 2
        mov     eax, [esp + 4]
        log     eax
        mov     eax, [esp + 8]
        cmp     byte ptr [eax], 0xcd
        jne     1f
        sub     dword ptr [esp + 8], 5
1:      add     dword ptr [esp + 8], 7
        pop     eax
        add     esp, 4
        iretd

# The main task goes into a task in virtual-8086 mode by IRET; its UD2 comes back by a task gate.
v86_task:
        task    _gated
        mov     byte ptr [GDT + OTHER + 5], 0x8b
        mov     dword ptr [TSS2 + TSS_EFLAGS], 0x20002
        mov     dword ptr [TSS2 + TSS_EIP], 8
        mov     dword ptr [TSS2 + TSS_CS], 0x5000
        mov     dword ptr [TSS2 + TSS_DS], 0x1234
        mov     dword ptr [TSS2 + TSS_ES], 0x2345
        mov     dword ptr [TSS2 + TSS_SS], 0x5000
        mov     dword ptr [TSS2 + TSS_ESP], 0x800
        mov     dword ptr [0x50008], 0x0b0fd88c         # mov ax, ds; ud2
        mov     word ptr [MAIN_TSS], OTHER
        task_gate 6, MAIN
        pushfd
        or      dword ptr [esp], 0x4000
        popfd
        iretd
        log_tasks
        mov     eax, [TSS2 + 40]
        movzx   eax, ax
        log     eax
        mov     eax, [TSS2 + TSS_EFLAGS]
        and     eax, 0x20000
        log     eax
        mov     eax, [TSS2 + TSS_EIP]
        log     eax
        mov     eax, [TSS2 + TSS_ES]
        log     eax
        mov     ax, ds
        movzx   eax, ax
        log     eax
        end

# A 16-bit TSS.
tss16:  mov     word ptr [TSS2 + 14], offset _task16 - 0x10000   # IP; its code segment starts at 0x10000
        mov     word ptr [TSS2 + 16], 2
        mov     word ptr [TSS2 + 26], 0x800     # SP
        mov     word ptr [TSS2 + 34], DATA32    # ES
        mov     word ptr [TSS2 + 36], GATE      # CS
        mov     word ptr [TSS2 + 38], GATE + 8  # SS
        mov     word ptr [TSS2 + 40], DATA32    # DS
        mov     word ptr [TSS2 + 42], 0
        mov     dword ptr [GDT + OTHER], (TSS2 & 0xffff) << 16 | 0x2b
        mov     dword ptr [GDT + OTHER + 4], TSS2 >> 16 | 0x8100
        mov     dword ptr [GDT + GATE], 0xffff          # 16-bit code at 0x10000
        mov     dword ptr [GDT + GATE + 4], 0x9a01
        mov     dword ptr [GDT + GATE + 8], 0xffff      # 16-bit data at 0x50000
        mov     dword ptr [GDT + GATE + 12], 0x9205
        mov     eax, 0x55550000
        far_call OTHER
        log_tasks
        mov     eax, [SCRATCH + 4]
        log     eax
        end
        .code16
_task16:
        mov     word ptr ss:[4], 0x1616
        mov     ax, ss:[6]
        str     word ptr ss:[6]
        iretw
        .code32
