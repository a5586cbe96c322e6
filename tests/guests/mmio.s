# Instructions whose operands are memory-mapped I/O: the test device's memory at 0xFF000000, which holds what is written.

        .include "pc64.inc"

.macro fresh                            # 0x8877665544332211 at rsi
        mov     rax, 0x8877665544332211
        mov     [rsi], rax
.endm

.macro log64 register
        mov     rdx, \register
        log     edx
        shr     rdx, 32
        log     edx
.endm

.macro start
        mov     esi, 0xff000000
.endm

# Read, modify, write; each does it once.
modify: start
        fresh
        inc     byte ptr [rsi]
        add     word ptr [rsi + 2], 0x1111
        lock add dword ptr [rsi + 4], 1
        log64   [rsi]
        fresh
        mov     eax, 0x5a5a5a5a
        xchg    eax, [rsi]
        log     eax
        mov     eax, 3
        lock xadd [rsi + 4], eax
        log     eax
        log64   [rsi]
        fresh
        mov     eax, 0x44332211
        mov     ecx, 0x99
        lock cmpxchg [rsi], ecx
        setz    al
        movzx   eax, al
        log     eax
        mov     eax, 7
        lock cmpxchg [rsi + 4], ecx
        log     eax
        log64   [rsi]
        fresh
        mov     ecx, 35
        lock bts [rsi], rcx
        setc    al
        movzx   eax, al
        log     eax
        btr     dword ptr [rsi], 0
        neg     byte ptr [rsi + 7]
        shl     word ptr [rsi + 2], 4
        log64   [rsi]
        end

# Stack instructions, calls and jumps through pointers that lie there.
pointers:
        start
        fresh
        push    qword ptr [rsi]
        pop     rax
        log64   rax
        mov     eax, 0x1234
        push    rax
        pop     qword ptr [rsi + 8]
        log64   [rsi + 8]
        lea     rax, [rip + _called]
        mov     [rsi], rax
        call    [rsi]
        lea     rax, [rip + 1f]
        mov     [rsi], eax
        mov     word ptr [rsi + 4], 8
        jmp     fword ptr [rsi]
        ud2
1:      logi    2
        lea     rax, [rip + _far]
        mov     [rsi], eax
        call    fword ptr [rsi]
        logi    4
        mov     word ptr [rsi + 0x20], 0x1ff
        mov     qword ptr [rsi + 0x22], 0x7000
        lidt    [rsi + 0x20]
        sidt    [rsi + 0x30]
        log64   [rsi + 0x30]
        mov     word ptr [rsi], 0x10
        mov     es, word ptr [rsi]
        mov     word ptr [rsi + 2], es
        mov     eax, [rsi]
        log     eax
        end
_called:
        logi    1
        ret
_far:   logi    3
        .byte   0xcb                    # retf

# Strings, both ways, and across the border of two pages.
strings:
        start
        mov     r12, rdi
        mov     edi, esi
        mov     eax, 0x04030201
        mov     ecx, 4
        rep     stosd
        mov     edi, 0x80000
        mov     ecx, 16
        rep     movsb
        mov     rdi, r12
        log64   [0x80008]
        mov     r12, rdi
        mov     edi, 0xff000800
        mov     esi, 0x80000
        mov     ecx, 8
        rep     movsw
        mov     esi, 0x80000
        mov     edi, 0xff000800
        mov     ecx, 16
        repe    cmpsb
        sete    al
        movzx   eax, al
        mov     rdi, r12
        log     eax
        log     ecx
        mov     r12, rdi
        mov     edi, 0xff000800
        mov     al, 3
        mov     ecx, 16
        repne   scasb
        mov     rdi, r12
        log     ecx
        mov     esi, 0xff00080f
        std
        lodsb
        lodsb
        cld
        movzx   eax, al
        log     eax
        mov     eax, 0xff000ffd
        mov     rcx, 0x1122334455667788
        mov     [rax], rcx
        log64   [rax]
        end

# Wide registers: MMX, SSE aligned or not, and CMPXCHG16B.
wide:   start
        fresh
        mov     [rsi + 8], rsi
        movq    mm0, [rsi]
        paddb   mm0, mm0
        movq    [rsi + 0x10], mm0
        emms
        log64   [rsi + 0x10]
        movdqa  xmm0, [rsi]
        movdqu  [rsi + 0x21], xmm0
        log64   [rsi + 0x21]
        log64   [rsi + 0x29]
        movd    dword ptr [rsi + 0x41], xmm0
        mov     eax, [rsi + 0x40]
        log     eax
        mov     rax, [rsi]
        mov     rdx, [rsi + 8]
        mov     r12, rbx
        mov     ebx, 5
        mov     ecx, 6
        lock cmpxchg16b [rsi]
        mov     rbx, r12
        setz    al
        movzx   eax, al
        log     eax
        log64   [rsi]
        log64   [rsi + 8]
        end

# Multiplication, division, and what is not to happen: a divisor of 0 there faults.
arithmetic:
        start
        handle  0, _divide
        mov     dword ptr [rsi], 7
        mov     eax, 6
        mul     dword ptr [rsi]
        log     eax
        mov     eax, 100
        xor     edx, edx
        div     dword ptr [rsi]
        log     eax
        log     edx
        imul    ecx, [rsi], -3
        log     ecx
        mov     dword ptr [rsi], 0
        mov     eax, 1
        div     dword ptr [rsi]
        log     eax
        movsx   eax, byte ptr [rsi]
        mov     byte ptr [rsi], 0x80
        movsx   eax, byte ptr [rsi]
        log     eax
        movbe   eax, [rsi]
        log     eax
        mov     ecx, 1
        test    ecx, ecx
        cmovz   eax, [rsi]
        log     eax
        end
_divide:
        logi    0xde
        add     qword ptr [rsp], 2
        iretq
