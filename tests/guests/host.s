# A guest of the kind of KVM's unit tests, and what such a one asks of its host: a Multiboot 1 image in ELF32 for 4 MiB
# with a large bss, entered in flat 32-bit protected mode. It prints on COM1 what it is handed and finds, in lines, and
# ends by the debug exit port with the number of CPUs that have come up. The test has the rest (test_unit_host.py).

        .intel_syntax noprefix
        .text
        .code32

        .set BASE, 0x400000
        .set BSS, 0x401000              # 13 MiB, zero
        .set BSS_END, BSS + 0xd00000
        .set STACK, BSS + 0x10000
        .set ONLINE, BSS + 0x20000      # how many other CPUs are
        .set LAPIC, 0xfee00000
        .set OTHERS, 0xc0000
        .set ASSERT, 0x4000
        .set COM1, 0x3f8
        .set FW_CFG, 0x510
        .set TEST_PORTS, 0xe0
        .set TEST_MEMORY, 0xff000000
        .set DEBUG_EXIT, 0xf4
        .set INFO_COMMAND_LINE, 16
        .set INFO_MODULES, 20

        .long   0x1badb002, 0, -0x1badb002

start:  mov     esp, STACK
        push    eax
        call    line                    # the magic number
        mov     eax, [ebx + 8]          # mem_upper, KiB
        call    line
        mov     edi, BSS                # the words of bss that are not zero, but for the stack
        mov     ecx, (BSS_END - BSS) / 4
        xor     edx, edx
1:      cmp     edi, STACK - 64
        jb      2f
        cmp     edi, STACK
        jb      3f
2:      cmp     dword ptr [edi], 0
        je      3f
        inc     edx
3:      add     edi, 4
        dec     ecx
        jnz     1b
        mov     eax, edx
        call    line
        mov     esi, [ebx + INFO_COMMAND_LINE]
        call    text
        cmp     dword ptr [ebx + INFO_MODULES], 0
        je      4f
        mov     eax, [ebx + INFO_MODULES + 4]
        mov     esi, [eax]              # the first one: its start, and up to its end
        mov     edi, [eax + 4]
5:      cmp     esi, edi
        jae     4f
        lodsb
        call    put
        jmp     5b

4:      mov     eax, 5                  # the number of CPUs
        mov     ecx, 2
        call    fw_cfg
        mov     ebp, eax
        call    line
        mov     eax, 3                  # RAM
        mov     ecx, 4
        call    fw_cfg
        call    line
        mov     eax, 0x11
        mov     ecx, 8
        call    fw_cfg
        call    line

        mov     eax, 0x12345678         # the test device's ports, in all sizes
        out     TEST_PORTS, eax
        mov     al, 0x9a
        out     TEST_PORTS + 1, al
        mov     ax, 0xbcde
        out     TEST_PORTS + 2, ax
        in      eax, TEST_PORTS
        call    line
        mov     dx, TEST_PORTS + 8
        in      al, dx
        movzx   eax, al
        call    line
        mov     eax, 0x5000
        out     TEST_PORTS + 4, eax
        mov     edi, TEST_MEMORY + 0xfffd # and its memory
        mov     dword ptr [edi - 1], 0x11223344
        mov     byte ptr [edi], 0x55
        mov     eax, [edi - 1]
        call    line

        mov     esi, offset start_up    # the other CPUs: vector 0, and not a moment between the messages
        xor     edi, edi
        mov     ecx, start_up_end - start_up
        cld
        rep     movsb
        mov     dword ptr [LAPIC + 0xf0], 0x1ff
        mov     dword ptr [LAPIC + 0x300], OTHERS | ASSERT | 0x500
        mov     dword ptr [LAPIC + 0x300], OTHERS | 0x600
        dec     ebp
6:      pause
        cmp     [ONLINE], ebp
        jne     6b
        lea     eax, [ebp + 1]
        mov     dx, DEBUG_EXIT
        out     dx, eax
7:      hlt
        jmp     7b

# The little-endian item EAX of ECX bytes, its low 32 bits, in EAX; byte by byte by the ports.
fw_cfg: mov     dx, FW_CFG
        out     dx, ax
        inc     dx
        push    ebx
        xor     ebx, ebx
        xor     edi, edi
1:      in      al, dx
        movzx   eax, al
        xchg    ecx, edi
        shl     eax, cl
        xchg    ecx, edi
        add     edi, 8
        cmp     edi, 32
        ja      2f
        or      ebx, eax
2:      dec     ecx
        jnz     1b
        mov     eax, ebx
        pop     ebx
        ret

# Print EAX in hexadecimal as a line.
line:   push    ecx
        push    esi
        mov     esi, eax
        mov     ecx, 8
1:      rol     esi, 4
        mov     eax, esi
        and     eax, 15
        mov     al, [digits + eax]
        call    put
        dec     ecx
        jnz     1b
        mov     al, '\n'
        call    put
        pop     esi
        pop     ecx
        ret

# Print the string at ESI as a line.
text:   lodsb
        test    al, al
        jz      1f
        call    put
        jmp     text
1:      mov     al, '\n'
        # and on

# Print AL, having polled for room.
put:    push    edx
        push    eax
        mov     dx, COM1 + 5
1:      in      al, dx
        test    al, 0x20
        jz      1b
        mov     dx, COM1
        pop     eax
        out     dx, al
        pop     edx
        ret

digits: .ascii  "0123456789abcdef"

        .code16
start_up:
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        .byte   0x66                    # lgdtl
        lgdt    cs:[gdtr - start_up]
        .byte   0x66, 0xea              # jmp 8:other
        .long   other
        .word   8
gdtr:   .word   23
        .long   gdt
start_up_end:
        .code32
other:  mov     eax, 0x10
        mov     ds, eax
        lock inc dword ptr [ONLINE]
1:      hlt
        jmp     1b
gdt:    .quad   0, 0xcf9b000000ffff, 0xcf93000000ffff
