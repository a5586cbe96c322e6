# The I/O APIC of the PC, its lines raised by the test device. Intel 82093AA; SDM vol. 3A, chapter 11, for the LAPIC.

        .include "pc64.inc"

        .set LEVEL, 0x8000
        .set MASKED, 0x10000
        .set REMOTE_IRR, 0x4000

.macro log_remote_irr pin
        ioapic_read (0x10+2*\pin)
        and     eax, REMOTE_IRR
        log     eax
.endm

# The identification registers. All ones are written to each.
registers:
        ioapic_read 1
        mov     ecx, eax
        mov     dword ptr [rbp + 0x10], 0xffffffff
        mov     eax, [rbp + 0x10]
        sub     eax, ecx
        log     eax
        and     ecx, 0xff00ff
        cmp     cl, 0x11
        setae   al
        movzx   eax, al
        log     eax
        shr     ecx, 16
        log     ecx
        ioapic_read 0
        mov     dword ptr [rbp + 0x10], 0xffffffff
        mov     eax, [rbp + 0x10]
        log     eax
        ioapic_read 2
        log     eax
        mov     dword ptr [rbp + 0x10], 0
        mov     eax, [rbp + 0x10]
        log     eax
        end

log_66: logging_handler 0x66
log_77: logging_handler 0x77
log_78: logging_handler 0x78

# An edge is one interrupt, however long the line stays up.
edge:
        call    mask_pics
        handle  0x77, log_77
        route   14, 0x77
        sti
        line    14, 1
        jmp     1f
1:      jmp     1f
1:      logi    1
        line    14, 0
        line    14, 1
        jmp     1f
1:      logi    2
        line    14, 0
        jmp     1f
1:      end

# Two that come together: the higher vector first, then the other, before the program goes on.
simultaneous:
        call    mask_pics
        handle  0x66, log_66
        handle  0x78, log_78
        route   14, 0x78
        route   15, 0x66
        line    15, 1
        line    15, 0
        line    14, 1
        line    14, 0
        sti
        nop
        cli
        end

# Level: Remote IRR from the acceptance to the EOI, the TMR bit.
level:
        call    mask_pics
        handle  0x77, lower_77
        route   14, LEVEL | 0x77
        log_remote_irr 14
        line    14, 1
        line    14, 1
        log_remote_irr 14
        sti
        nop
        cli
        log_remote_irr 14
        mov     eax, [rbx + TMR + 0x30]
        log     eax
        route   14, 0x77
        line    14, 1
        line    14, 0
        sti
        nop
        cli
        mov     eax, [rbx + TMR + 0x30]
        log     eax
        end
lower_77:
        logi    0x77
        push    rax
        push    rdx
        line    14, 0
        eoi
        pop     rdx
        pop     rax
        iretq

# One after the other, each its own; then one that is not served at the first time and comes again.
retrigger:
        call    mask_pics
        handle  0x77, lower_77
        handle  0x78, lower_second
        route   14, LEVEL | 0x77
        sti
        line    14, 1
        jmp     1f
1:      line    14, 1
        jmp     1f
1:      logi    1
        route   15, LEVEL | 0x78
        line    15, 1
        jmp     1f
1:      jmp     1f
1:      end
lower_second:
        logi    0x78
        push    rax
        push    rdx
        inc     dword ptr [SCRATCH]
        cmp     dword ptr [SCRATCH], 2
        jne     1f
        line    15, 0
1:      eoi
        pop     rdx
        pop     rax
        iretq

# Masked, an edge is lost and a level is not.
masks:
        call    mask_pics
        handle  0x77, log_77
        handle  0x78, lower_15
        route   14, MASKED | 0x77
        sti
        line    14, 1
        line    14, 0
        jmp     1f
1:      route   14, 0x77
        jmp     1f
1:      logi    1
        line    14, 1
        line    14, 0
        jmp     1f
1:      logi    2
        route   15, MASKED | LEVEL | 0x78
        line    15, 1
        jmp     1f
1:      logi    3
        route   15, LEVEL | 0x78
        jmp     1f
1:      logi    4
        end
lower_15:
        logi    0x78
        push    rax
        push    rdx
        line    15, 0
        eoi
        pop     rdx
        pop     rax
        iretq

# A handler masks its level-triggered pin and ends; unmasked while still up, it comes again.
masked_in_handler:
        call    mask_pics
        handle  0x77, mask_and_end
        route   14, LEVEL | 0x77
        sti
        line    14, 1
        jmp     1f
1:      jmp     1f
1:      logi    1
        route   14, LEVEL | 0x77
        jmp     1f
1:      logi    2
        line    14, 0
        route   14, LEVEL | 0x77
        jmp     1f
1:      end
mask_and_end:
        logi    0x77
        route   14, MASKED | LEVEL | 0x77
        eoi
        iretq

# A handler gives its pin another destination: the EOI still ends the interrupt under way.
other_destination:
        call    mask_pics
        handle  0x77, reroute
        route   14, LEVEL | 0x77
        sti
        line    14, 1
        jmp     1f
1:      cli
        log_remote_irr 14
        end
reroute:
        logi    0x77
        push    rax
        push    rdx
        line    14, 0
        mov     dword ptr [rbp], 0x11 + 28
        mov     dword ptr [rbp + 0x10], 0x1000000
        eoi
        pop     rdx
        pop     rax
        iretq

# Held by the task priority it is accepted, and comes when that falls.
held:
        call    mask_pics
        handle  0x77, lower_77
        mov     dword ptr [rbx + TPR], 0x70
        route   14, LEVEL | 0x77
        sti
        line    14, 1
        jmp     1f
1:      log_remote_irr 14
        logi    1
        mov     dword ptr [rbx + TPR], 0x60
        jmp     1f
1:      logi    2
        end

# Broadcasts of EOIs suppressed: Remote IRR stays until the EOI register is written, and then it comes again.
suppressed:
        call    mask_pics
        handle  0x77, log_77
        mov     dword ptr [rbx + SVR], 0x11ff
        route   14, LEVEL | 0x77
        sti
        line    14, 1
        jmp     1f
1:      log_remote_irr 14
        logi    1
        mov     dword ptr [rbp + 0x40], 0x78
        jmp     1f
1:      logi    2
        mov     dword ptr [rbp + 0x40], 0x77
        jmp     1f
1:      logi    3
        line    14, 0
        mov     dword ptr [rbp + 0x40], 0x77
        jmp     1f
1:      log_remote_irr 14
        end

# Delivered as an NMI, whatever the trigger mode, the vector and the interrupt flag.
nmi:
        call    mask_pics
        handle  2, _on_nmi
        route   14, LEVEL | NMI | 0x77
        line    14, 1
        jmp     1f
1:      log_remote_irr 14
        line    14, 0
        line    14, 1
        jmp     1f
1:      end
_on_nmi:
        logi    2
        iretq

# Destinations among four CPUs. CPU n's count of 0x77 is byte n of what is logged.
destinations:
        call    mask_pics
        handle  0x77, count_77
        handle  0x50, set_id
        mov     eax, 0x1000000
        mov     [rbx + LDR], eax
        mov     r14d, 3
        call    start_others
        icr     OTHERS | 0x50
        await   SCRATCH, 3
        route   14, 0x77, 1
        call    _pulse1
        route   14, 0x77, 0
        call    _pulse1
        route   14, LOGICAL | 0x77, 0xd
        mov     r13d, 3
        call    _pulse
        route   14, LOGICAL | LOWEST | 0x77, 0xe
        call    _pulse1
        route   14, 0x77, 0xff
        mov     r13d, 4
        call    _pulse
        route   14, LOGICAL | LEVEL | 0x77, 0xf
        mov     dword ptr [SCRATCH + 8], 1
        mov     r13d, 4
        call    _pulse
        cli
        log_remote_irr 14
        end
_pulse1:
        mov     r13d, 1
_pulse: line    14, 1
        cmp     dword ptr [SCRATCH + 8], 0
        jne     1f
        line    14, 0
1:      sti
1:      pause
        mov     eax, [COUNTS + 0x77 * 4]
        add     eax, [COUNTS + 0x400 + 0x77 * 4]
        add     eax, [COUNTS + 0x800 + 0x77 * 4]
        add     eax, [COUNTS + 0xc00 + 0x77 * 4]
        cmp     eax, r13d
        jb      1b
        pass_   100000
        cli
        mov     ecx, 0
        mov     edx, 4
        mov     eax, COUNTS + 0xc00 + 0x77 * 4
1:      shl     ecx, 8
        add     ecx, [rax]
        mov     dword ptr [rax], 0
        sub     eax, 0x400
        dec     edx
        jnz     1b
        log     ecx
        ret
set_id: push    rax
        push    rcx
        mov     ecx, r15d
        mov     eax, 0x1000000
        shl     eax, cl
        mov     [rbx + LDR], eax
        pop     rcx
        pop     rax
        eoi
        lock inc dword ptr [SCRATCH]
        iretq
count_77:
        push    rax
        push    rdx
        mov     eax, r15d
        shl     eax, 10
        inc     dword ptr [COUNTS + 0x77 * 4 + rax]
        line    14, 0
        eoi
        pop     rdx
        pop     rax
        iretq

# An interrupt that an OUT raises is taken right behind it, within straight-line code; string instructions are whole.
behind_out:
        call    mask_pics
        handle  0x77, _where
        route   14, 0x77
        lea     r12, [rip + _behind]
        sti
        mov     edx, LINES + 14
        mov     eax, 1
        out     dx, al
_behind:
        inc     eax
        inc     eax
        log     eax
        mov     eax, 0
        out     dx, al
        mov     byte ptr [SCRATCH], 1
        mov     byte ptr [SCRATCH + 1], 0
        mov     byte ptr [SCRATCH + 2], 1
        mov     byte ptr [SCRATCH + 3], 0
        mov     esi, SCRATCH
        mov     ecx, 4
        rep     outsb
        cli
        mov     eax, esi
        log     eax
        log     ecx
        end
_where: push    rax
        log     eax
        mov     rax, [rsp + 8]
        sub     rax, r12
        log     eax
        pop     rax
        eoi
        iretq
