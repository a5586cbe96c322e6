# The 8259s by virtual wire mode, and what interrupts by time: 8254, RTC, HPET. Under long mode.
# Intel 8259A, 8254; MC146818A; IA-PC HPET Specification 1.0a.

        .include "pc64.inc"

        .set HPET, 0xfed00000
        .set SECOND, 1000000000

.macro outb port, value
        mov     al, \value
        out     \port, al
.endm

.macro log_port port
        in      al, \port
        movzx   eax, al
        log     eax
.endm

# A handler of the 8259s' that logs a number and leaves the rest to the test.
.macro pic_handler number
        logi    \number
        push    rax
        call    [SCRATCH + 0x100]
        pop     rax
        iretq
.endm

.irp n, 20, 21, 22, 23, 24, 25, 26, 27, 28, 2f
pic_\n: pic_handler 0x\n
.endr

# Set the pair up: vectors 0x20 and 0x28, ICW4 of both; nothing masked but the timer. Handlers, and what ends them.
.macro pics icw4=1, after=_eoi
        .irp n, 20, 21, 22, 23, 24, 25, 26, 27, 28, 2f
        handle  0x\n, pic_\n
        .endr
        lea     rax, [rip + \after]
        mov     [SCRATCH + 0x100], rax
        outb    0x20, 0x11
        outb    0x21, 0x20
        outb    0x21, 4
        outb    0x21, \icw4
        outb    0xa0, 0x11
        outb    0xa1, 0x28
        outb    0xa1, 2
        outb    0xa1, \icw4
        outb    0x21, 1
        outb    0xa1, 0xfe
.endm

.macro pulse number
        line    \number, 1
        line    \number, 0
.endm

.macro window
        sti
        nop
        cli
.endm

_eoi:   outb    0x20, 0x20
_none:  ret

# Fully nested: the lower number first, each when the one before has ended; IRR, ISR; the mask.
nested: pics
        pulse   5
        pulse   3
        pulse   6
        outb    0x20, 0x0a
        log_port 0x20
        window
        logi    1
        outb    0x21, 0x21
        pulse   5
        pulse   3
        window
        logi    2
        outb    0x21, 1
        window
        end

# Without an EOI lower ones wait, and higher ones do not; a specific EOI ends one.
in_service:
        pics    1, _none
        pulse   4
        window
        pulse   6
        window
        logi    1
        pulse   3
        window
        outb    0x20, 0x0b
        log_port 0x20
        outb    0x20, 0x64              # specific EOI of 4: 3 is in service still
        window
        logi    2
        outb    0x20, 0x63
        window
        outb    0x20, 0x0b
        log_port 0x20
        end

# Automatic EOI: nothing stays in service.
automatic:
        pics    3, _none
        pulse   4
        pulse   6
        window
        outb    0x20, 0x0b
        log_port 0x20
        end

# Rotation on EOI: what was served becomes the lowest; and the bottom set by hand.
rotation:
        pics    1, _rotate
        pulse   3
        window
        pulse   3
        pulse   5
        window
        outb    0x20, 0xc4              # 4 is the lowest: 5 is the highest
        pulse   3
        pulse   5
        pulse   4
        window
        end
_rotate:
        outb    0x20, 0xa0
        ret

# Special mask mode: a masked level in service holds nobody off.
special_mask:
        pics    1, _none
        pulse   3
        window
        outb    0x21, 0x09
        pulse   5
        window
        logi    1
        outb    0x20, 0x68
        window
        outb    0x20, 0x48
        end

# Poll: the read is the acknowledge.
poll:   pics
        pulse   6
        outb    0x20, 0x0c
        log_port 0x20
        outb    0x20, 0x0c
        log_port 0x20
        outb    0x20, 0x0b
        log_port 0x20
        outb    0x20, 0x20
        window
        end

# A level-triggered input (ELCR) asks while it is up: gone, nothing is left of it; still up, it comes.
elcr:
        pics
        mov     dx, 0x4d0
        mov     al, 0x20
        out     dx, al
        outb    0x21, 0x21              # masked, for the input not to reach the CPU at once
        line    5, 1
        outb    0x21, 1
        line    5, 0
        window
        outb    0x20, 0x0b
        log_port 0x20
        logi    1
        line    5, 1
        mov     qword ptr [SCRATCH + 0x100], offset _lower5
        window
        end
_lower5:
        push    rdx
        line    5, 0
        outb    0x20, 0x20
        pop     rdx
        ret

# The 8254.

# Mode 0 ends once; mode 2 goes on; each by IRQ 0 and the 8259. Then the read-back of status and count.
pit:    pics
        outb    0x21, 0xfe
        outb    0x43, 0x30
        outb    0x40, 0xe8
        outb    0x40, 0x03              # 1000: 838 us
        pass_   800000
        window
        logi    1
        pass_   100000
        window
        pass_   5000000
        window
        logi    2
        outb    0x43, 0x34
        outb    0x40, 0xe8
        outb    0x40, 0x03
        pass_   900000
        window
        pass_   900000
        window
        logi    3
        outb    0x43, 0xc2              # counter 0: status and count latched
        log_port 0x40
        in      al, 0x40
        mov     ah, al
        in      al, 0x40
        xchg    al, ah
        movzx   eax, ax
        log     eax
        end

# Counter 2 by port 0x61: mode 1 starts with the gate's rise, its output is low meanwhile.
speaker:
        outb    0x61, 0
        outb    0x43, 0xb2
        outb    0x42, 0x10
        outb    0x42, 0x27              # 10000: 8.38 ms
        pass_   20000000
        call    _out2
        outb    0x61, 1
        pass_   8000000
        call    _out2
        pass_   1000000
        call    _out2
        end
_out2:  in      al, 0x61
        shr     eax, 5
        and     eax, 1
        log     eax
        ret

# The RTC: IRQ 8 by the slave.

.macro cmos register, value
        outb    0x70, \register
        outb    0x71, \value
.endm

.macro log_cmos register
        outb    0x70, \register
        log_port 0x71
.endm

# Periodic at 1024 Hz: one, and the next only after register C was read. Then update-ended, and an alarm each second.
rtc:    pics    1, _both
        outb    0x21, 0xfb
        log_cmos 0x0c
        cmos    0x0a, 0x26
        cmos    0x0b, 0x42
        pass_   1000000
        window
        pass_   1000000
        window
        logi    1
        log_cmos 0x0c
        pass_   1000000
        window
        logi    2
        cmos    0x0b, 0x12
        outb    0x70, 0x0c
        in      al, 0x71
        pass_   SECOND
        window
        log_cmos 0x0c
        cmos    1, 0xff
        cmos    3, 0xff
        cmos    5, 0xff
        cmos    0x0b, 0x22
        outb    0x70, 0x0c
        in      al, 0x71
        pass_   SECOND
        window
        log_cmos 0x0c
        end
_both:  outb    0xa0, 0x20
        outb    0x20, 0x20
        ret

# The HPET: rsi is its page.

# One-shot, by an I/O APIC pin; periodic with the comparator set; level-triggered with the status register.
hpet:   call    mask_pics
        handle  0x41, log_41
        mov     esi, HPET
        mov     eax, [rsi + 4]
        log     eax                     # femtoseconds a count: 10 ns here
        route   20, 0x41
        mov     dword ptr [rsi + 0x10], 0
        mov     dword ptr [rsi + 0xf0], 0
        mov     dword ptr [rsi + 0xf4], 0
        mov     dword ptr [rsi + 0x100], 20 << 9 | 0x104    # 32 bits, interrupts on
        mov     dword ptr [rsi + 0x108], 100000
        mov     dword ptr [rsi + 0x10], 1
        pass_   900000
        window
        logi    1
        pass_   200000
        window
        pass_   5000000
        window
        logi    2
        mov     dword ptr [rsi + 0x10], 0
        mov     dword ptr [rsi + 0xf0], 0
        mov     dword ptr [rsi + 0x100], 20 << 9 | 0x14c    # periodic, VAL_SET
        mov     dword ptr [rsi + 0x108], 100000
        mov     dword ptr [rsi + 0x10], 1
        pass_   1100000
        window
        pass_   1000000
        window
        logi    3
        mov     dword ptr [rsi + 0x10], 0
        mov     dword ptr [rsi + 0x100], 0
        route   20, 0x8041
        mov     dword ptr [rsi + 0xf0], 0
        mov     dword ptr [rsi + 0x120], 20 << 9 | 0x106    # timer 1, level
        mov     dword ptr [rsi + 0x128], 100000
        mov     dword ptr [rsi + 0x10], 1
        pass_   1100000
        mov     eax, [rsi + 0x20]
        log     eax
        mov     dword ptr [rsi + 0x20], 2
        window
        mov     eax, [rsi + 0x20]
        log     eax
        end
log_41: logging_handler 0x41
log_42: logging_handler 0x42

# A message in place of a line (FSB), and legacy replacement: IRQ 0 is the HPET's at I/O APIC pin 2.
hpet_messages:
        call    mask_pics
        handle  0x42, log_42
        handle  0x41, log_41
        mov     esi, HPET
        mov     eax, [rsi + 0x100]
        shr     eax, 15
        and     eax, 1
        log     eax
        mov     dword ptr [rsi + 0x10], 0
        mov     dword ptr [rsi + 0xf0], 0
        mov     dword ptr [rsi + 0x110], 0x42
        mov     dword ptr [rsi + 0x114], 0xfee00000
        mov     dword ptr [rsi + 0x100], 0x4104
        mov     dword ptr [rsi + 0x108], 100000
        mov     dword ptr [rsi + 0x10], 1
        pass_   1100000
        window
        logi    1
        mov     dword ptr [rsi + 0x10], 0
        mov     dword ptr [rsi + 0xf0], 0
        mov     dword ptr [rsi + 0x100], 0x104
        route   2, 0x41
        mov     dword ptr [rsi + 0x108], 100000
        mov     dword ptr [rsi + 0x10], 3
        pass_   1100000
        window
        mov     dword ptr [rsi + 0x10], 0
        end
