# 16-bit code: real mode with its vector table and the 8259s, and virtual-8086 mode under 32-bit code.

        .include "pc32.inc"

# Real mode. Entered with all segments but CS at 0, CS at 0x1000; `rlog` appends a word at DATA.

        .set    RLOG, 0x500             # how many words there are

.macro rlog what
        push    \what
        call    _rlog
.endm

# Let `handler` be entered for `vector` through the table at address 0.
.macro vector number, handler
        mov     word ptr ds:[\number * 4], offset \handler - 0x10000
        mov     word ptr ds:[\number * 4 + 2], 0x1000
.endm

.macro outb port, value
        mov     al, \value
        out     \port, al
.endm

        .code16
_rlog:  push    bp                      # a word below the return address
        mov     bp, sp
        push    ax
        push    bx
        push    es
        mov     ax, 0x3000
        mov     es, ax
        mov     bx, ds:[RLOG]
        shl     bx, 2
        mov     ax, [bp + 4]
        mov     es:[bx], ax
        inc     word ptr ds:[RLOG]
        pop     es
        pop     bx
        pop     ax
        pop     bp
        ret     2

_rend:  mov     edi, ds:[RLOG]
        shl     edi, 2
        add     edi, DATA
        out     FINISH, al
        cli
        hlt

# The 8259s as a PC's BIOS sets them up, vectors 8 and 0x70; all masked but `mask`.
_pics:  outb    0x20, 0x11
        outb    0x21, 8
        outb    0x21, 4
        outb    0x21, 1
        outb    0xa0, 0x11
        outb    0xa1, 0x70
        outb    0xa1, 2
        outb    0xa1, 1
        outb    0x21, 0xff
        outb    0xa1, 0xff
        ret

# INT n, INT3, INTO and a division error: what is on the stack, and IF and TF in the handler.
real_int:
        vector  0x21, _int21
        vector  3, _trap
        vector  4, _trap
        vector  0, _divide
        sti
        mov     word ptr ds:[0x600], sp
        int     0x21
_after21:
        int3
        rlog    3
        mov     al, 127
        add     al, 1
        into
        rlog    4
        mov     bl, 0
        mov     ax, 5
_divides:
        div     bl
        rlog    ax
        jmp     _rend
_int21: push    bp
        mov     bp, sp
        mov     ax, [bp + 2]
        sub     ax, offset _after21 - 0x10000
        rlog    ax
        rlog    "[bp + 4]"
        mov     ax, [bp + 6]
        and     ax, 0x200
        rlog    ax
        pushf
        pop     ax
        and     ax, 0x200
        rlog    ax
        mov     ax, ds:[0x600]
        sub     ax, bp
        rlog    ax
        pop     bp
        iret
_trap:  rlog    0x33
        iret
_divide:
        push    bp
        mov     bp, sp
        mov     ax, [bp + 2]
        sub     ax, offset _divides - 0x10000
        rlog    ax                      # a fault: at the instruction
        add     word ptr [bp + 2], 2
        mov     ax, 0x77
        pop     bp
        iret

# The 8254 by the 8259 and the table: woken from HLT ten times.
real_timer:
        vector  8, _tick
        call    _pics
        outb    0x43, 0x34              # counter 0, mode 2, 1 kHz
        outb    0x40, 0xa9
        outb    0x40, 0x04
        outb    0x21, 0xfe
1:      sti
        hlt
        cmp     word ptr ds:[0x602], 10
        jb      1b
        cli
        rlog    "word ptr ds:[0x602]"
        jmp     _rend
_tick:  push    ax
        inc     word ptr ds:[0x602]
        outb    0x20, 0x20
        pop     ax
        iret

# The slave's interrupt, from the test device; the table moved by LIDT; an interrupt in the middle of a string.
real_slave:
        mov     word ptr ds:[0x610], 0x3ff
        mov     dword ptr ds:[0x612], 0x2000
        lidt    ds:[0x610]
        mov     word ptr ds:[0x2000 + 0x73 * 4], offset _slave - 0x10000
        mov     word ptr ds:[0x2000 + 0x73 * 4 + 2], 0x1000
        call    _pics
        outb    0x21, 0xfb
        outb    0xa1, 0xf7
        sti
        mov     dx, 0x2000 + 11
        mov     al, 1
        out     dx, al
        jmp     1f
1:      rlog    2
        mov     al, 0
        out     dx, al
        jmp     _rend
_slave: push    ax
        rlog    0x73
        outb    0xa0, 0x0b
        in      al, 0xa0
        mov     ah, 0
        rlog    ax                      # the slave's ISR
        outb    0x20, 0x0b
        in      al, 0x20
        mov     ah, 0
        rlog    ax                      # the master's
        outb    0xa0, 0x20
        outb    0x20, 0x20
        pop     ax
        iret

# Virtual-8086 mode. The code there is a page at segment 0x1000, as in real mode.

        .code32
# Go to `where` with EFLAGS `flags`, VM added; all segments but CS and SS are 0x1111 to 0x4444.
.macro to_v86 where, flags
        push    0x4444                  # GS FS DS ES SS ESP EFLAGS CS EIP
        push    0x3333
        push    0x2222
        push    0x1111
        push    0x5000
        push    0x7f0
        push    0x20002 | \flags
        push    0x1000
        push    offset \where - 0x10000
        mov     [MAIN_TSS + TSS_ESP0], esp
        add     dword ptr [MAIN_TSS + TSS_ESP0], 36
        iretd
.endm

# Log a frame of virtual-8086 mode at [esp + 4 + `at`]: EIP less `base`, CS, VM and IF of EFLAGS, ESP, SS, ES to GS.
.macro log_v86 at, base
        mov     eax, [esp + \at]
        sub     eax, offset \base - 0x10000
        log     eax
        log     [esp + \at + 4]
        mov     eax, [esp + \at + 8]
        and     eax, 0x20200
        log     eax
        log     [esp + \at + 12]
        log     [esp + \at + 16]
        log     [esp + \at + 20]
        log     [esp + \at + 32]
.endm

.macro flat_data
        mov     eax, DATA32
        mov     ds, ax
        mov     es, ax
.endm

# An interrupt that waits is taken at the first instruction there; INT n, with IOPL 3, goes through the IDT.
v86_interrupts:
        handle  0x40, _v86_irq
        handle  0x41, _v86_int, 0xee
        mov     dword ptr [ebx + ICR], SELF | 0x40
        to_v86  _v86_code, 0x3200
_v86_irq:
        push    eax
        mov     eax, ds
        push    eax
        flat_data
        mov     eax, [esp]
        log     eax                     # DS is null in the handler
        log_v86 8, _v86_code
        eoi
        pop     eax
        pop     eax
        iretd
_v86_int:
        flat_data
        log_v86 0, _v86_code
        end
        .code16
_v86_code:
        mov     ax, cs                  # 0
        mov     ds, ax                  # 2
        cli                             # 4: with IOPL 3 it may
        int     0x41                    # 5
        .code32

# With IOPL below 3 what concerns the interrupt flag faults: CLI, STI, PUSHF, POPF, INT n, IRET; INT3 does not.
v86_iopl:
        handle  13, _v86_gp
        handle  3, _v86_int3, 0xee
        to_v86  _v86_sensitive, 0x0200
_v86_gp:
        push    eax
        flat_data
        mov     eax, [esp + 4]
        log     eax
        mov     eax, [esp + 8]
        sub     eax, offset _v86_sensitive - 0x10000
        log     eax
        inc     dword ptr [esp + 8]
        cmp     eax, 4
        jne     1f
        inc     dword ptr [esp + 8]     # INT n has two bytes
1:      pop     eax
        add     esp, 4
        iretd
_v86_int3:
        flat_data
        log     0x33
        end
        .code16
_v86_sensitive:
        cli                             # 0
        sti                             # 1
        pushf                           # 2
        popf                            # 3
        int     0x41                    # 4
        iret                            # 6
        int3                            # 7
        .code32
