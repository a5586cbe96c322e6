# The guest of pc.py: what interrupts and accesses to the chips of a PC cost. A Multiboot 1 image for 0x100000, in 32-bit
# protected mode without paging, kept with what it assembles to (pc.hex) by tools/assemble_guests.py.
#
# For each piece of work it prints "b" and the piece's letter on COM1, waits for a character there, does the work, and
# prints "e" and the letter. With a second CPU, which it starts, it does what needs one, too. Then it ends the run by
# the debug exit port.

        .intel_syntax noprefix
        .text
        .code32

        .set BASE, 0x100000
        .set IDT, 0x7000
        .set START_UP, 0x8000           # where the other CPU starts
        .set STACK, 0x90000
        .set OTHERS_STACK, 0x80000
        .set STATE, 0x6000              # dwords: other CPU is up, round trips done

        .set LAPIC, 0xfee00000
        .set TPR, LAPIC + 0x80
        .set EOI, LAPIC + 0xb0
        .set SVR, LAPIC + 0xf0
        .set ICR, LAPIC + 0x300
        .set ICR_HIGH, LAPIC + 0x310
        .set LVT_TIMER, LAPIC + 0x320
        .set TMICT, LAPIC + 0x380
        .set TDCR, LAPIC + 0x3e0
        .set IOAPIC, 0xfec00000
        .set HPET_COUNTER, 0xfed000f0
        .set SELF, 0x40000
        .set OTHERS, 0xc0000
        .set ASSERT, 0x4000

        .set COM1, 0x3f8
        .set DEBUG_EXIT, 0xf4
        .set FW_CFG, 0x510

        .set ACCESSES, 100000           # as in pc.py
        .set INTERRUPTS, 20000
        .set TIMERS, 1000
        .set ROUND_TRIPS, 3000
        .set BUSY, 300

# work LETTER: from here to `done LETTER` is timed.
.macro work letter
        mov     esi, 'b' | \letter << 8
        call    say
        call    hear
.endm
.macro done letter
        mov     esi, 'e' | \letter << 8
        call    say
.endm

# handle VECTOR, HANDLER: an interrupt gate.
.macro handle vector, handler
        mov     eax, offset \handler
        mov     word ptr [IDT + 8 * \vector], ax
        mov     word ptr [IDT + 8 * \vector + 2], 8
        mov     word ptr [IDT + 8 * \vector + 4], 0x8e00
        shr     eax, 16
        mov     word ptr [IDT + 8 * \vector + 6], ax
.endm

header: .long   0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
        .long   header, BASE, _end, _end, start    # header, load, load end, bss end, entry

start:  cli
        mov     esp, STACK
        lgdt    [gdtr]
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        lidt    [idtr]
        xor     eax, eax
        mov     edi, IDT
        mov     ecx, 0x200
        cld
        rep     stosd
        mov     [STATE], eax
        mov     [STATE + 4], eax
        handle  0x40, count
        handle  0x41, answer
        handle  0x42, tell
        handle  0x43, compute
        handle  0xff, spurious
        mov     al, 0xff                # the 8259s are not used
        out     0x21, al
        out     0xa1, al
        mov     dword ptr [SVR], 0x1ff
        mov     dword ptr [TPR], 0
        mov     al, 3                   # DTR, RTS: characters may come
        mov     dx, COM1 + 4
        out     dx, al

        work    'a'
        mov     ecx, ACCESSES
1:      mov     eax, [TPR]
        dec     ecx
        jnz     1b
        done    'a'

        work    'b'
        mov     ecx, ACCESSES
        xor     eax, eax
1:      mov     [TPR], eax
        dec     ecx
        jnz     1b
        done    'b'

        mov     dword ptr [IOAPIC], 1
        work    'c'
        mov     ecx, ACCESSES
1:      mov     eax, [IOAPIC + 0x10]
        dec     ecx
        jnz     1b
        done    'c'

        work    'd'
        mov     ecx, ACCESSES
1:      mov     eax, [HPET_COUNTER]
        dec     ecx
        jnz     1b
        done    'd'

        work    'e'
        mov     ecx, ACCESSES
1:      out     0x80, al
        dec     ecx
        jnz     1b
        done    'e'

        # An interrupt to itself, taken and ended.
        work    'f'
        mov     ecx, INTERRUPTS
1:      mov     dword ptr [ICR], SELF | 0x40
        sti
        nop
        cli
        dec     ecx
        jnz     1b
        done    'f'

        # A timer of a few ns, from halting until it has interrupted.
        mov     dword ptr [TDCR], 0xb
        mov     dword ptr [LVT_TIMER], 0x40
        work    'g'
        mov     ecx, TIMERS
1:      mov     dword ptr [TMICT], 10
        sti
        hlt
        cli
        dec     ecx
        jnz     1b
        done    'g'

        mov     dx, FW_CFG
        mov     ax, 5                   # the number of CPUs
        out     dx, ax
        inc     dx
        in      al, dx
        cmp     al, 2
        jb      end
        mov     esi, offset trampoline
        mov     edi, START_UP
        mov     ecx, trampoline_end - trampoline
        rep     movsb
        mov     dword ptr [ICR], OTHERS | ASSERT | 0x500
        mov     dword ptr [ICR], OTHERS | ASSERT | 0x600 | START_UP >> 12
1:      pause
        cmp     dword ptr [STATE], 0
        je      1b

        # An interrupt to the other CPU, which is halted and sends one back; both halt meanwhile.
        mov     dword ptr [ICR_HIGH], 1 << 24
        work    'h'
        mov     ecx, ROUND_TRIPS
1:      mov     dword ptr [ICR], ASSERT | 0x41
        sti
        hlt
        cli
        dec     ecx
        jnz     1b
        done    'h'

        # The same, where this CPU waits in a loop with PAUSE.
        handle  0x40, tell
        work    'i'
        sti
        mov     ecx, ROUND_TRIPS
1:      mov     dword ptr [STATE + 4], 0
        mov     dword ptr [ICR], ASSERT | 0x41
2:      pause
        cmp     dword ptr [STATE + 4], 0
        je      2b
        dec     ecx
        jnz     1b
        cli
        done    'i'

        # The same, in a loop without.
        work    'j'
        sti
        mov     ecx, ROUND_TRIPS
1:      mov     dword ptr [STATE + 4], 0
        mov     dword ptr [ICR], ASSERT | 0x41
2:      cmp     dword ptr [STATE + 4], 0
        je      2b
        dec     ecx
        jnz     1b
        cli
        done    'j'

        # An interrupt to the other CPU while that computes; it notes that it had it, for which this CPU waits in a loop.
        mov     dword ptr [ICR], ASSERT | 0x43
        work    'k'
        mov     ecx, BUSY
1:      mov     dword ptr [STATE + 4], 0
        mov     dword ptr [ICR], ASSERT | 0x42
2:      cmp     dword ptr [STATE + 4], 0
        je      2b
        dec     ecx
        jnz     1b
        done    'k'

end:    xor     eax, eax
        mov     dx, DEBUG_EXIT
        out     dx, al
1:      hlt
        jmp     1b

count:  mov     dword ptr [EOI], 0
        iretd
tell:   mov     dword ptr [STATE + 4], 1
        mov     dword ptr [EOI], 0
        iretd
spurious:
        iretd
compute:
        mov     dword ptr [EOI], 0
        sti
1:      inc     eax
        jmp     1b
answer: mov     dword ptr [ICR], ASSERT | 0x40 # to CPU 0
        mov     dword ptr [EOI], 0
        iretd

# Print SI's two characters and a line's end.
say:    mov     ecx, 3
        or      esi, 0x0a0000
1:      mov     dx, COM1 + 5
2:      in      al, dx
        test    al, 0x20
        jz      2b
        mov     dx, COM1
        mov     eax, esi
        out     dx, al
        shr     esi, 8
        loop    1b
        ret

# Wait for a character.
hear:   mov     dx, COM1 + 5
1:      in      al, dx
        test    al, 1
        jz      1b
        mov     dx, COM1
        in      al, dx
        ret

        .code16
trampoline:
        lgdt    cs:[gdtr_16 - trampoline]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        .byte   0x66, 0xea              # jmp 8:other
        .long   other
        .word   8
gdtr_16: .word  23
        .long   gdt
trampoline_end:
        .code32
other:  mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, OTHERS_STACK
        lidt    [idtr]
        mov     dword ptr [SVR], 0x1ff
        mov     dword ptr [ICR_HIGH], 0
        mov     dword ptr [STATE], 1
        sti
1:      hlt
        jmp     1b

gdtr:   .word   23
        .long   gdt
idtr:   .word   0x7ff
        .long   IDT
gdt:    .quad   0, 0xcf9b000000ffff, 0xcf93000000ffff
_end:
