# Machine code for x86-64 hosts that the library calls as its hooks. Assembled to the bytes in
# stubs.py by tools/assemble_stubs.py; tests/unicorn/test_stubs.py checks that the two agree.
#
# Why machine code: delivering an exception into the guest can fault again, and the library then
# leaves by longjmp. A Python frame in between would be skipped without being unwound. So Python
# decides and returns, and these stubs, which keep nothing to unwind, call what may not return.
# It also makes a guest's system call cost some 100 ns instead of some 10 us.
#
# The code is position-independent and holds no offset of the library's structures: each hook gets
# a table of addresses (struct Table in stubs.py) as its user data. System V ABI.

        .intel_syntax noprefix
        .text

        # struct Table, in 8-byte slots
        .set CPU, 0x00
        .set ENV, 0x08
        .set DO_INTERRUPT, 0x10         # x86_cpu_do_interrupt(cpu)
        .set DO_HARDIRQ, 0x18           # do_interrupt_x86_hardirq(env, vector, is_hw)
        .set RAISE_EXCEPTION, 0x20      # raise_exception(env, vector), never returns
        .set READ_EFLAGS, 0x28          # helper_read_eflags(env)
        .set WRITE_EFLAGS, 0x30         # helper_write_eflags(env, value, mask)
        .set CODE_PAGE, 0x38            # get_page_addr_code_hostp(env, gva, void **host)
        .set TLB_FLUSH, 0x40            # tlb_flush(cpu)
        .set INTERCEPT, 0x48            # Python: int (uc, code, table)
        .set EXCEPTION_INDEX, 0x50      # addresses of fields
        .set IS_INT, 0x58
        .set EFER, 0x60
        .set STAR, 0x68
        .set LSTAR, 0x70
        .set CSTAR, 0x78
        .set FMASK, 0x80
        .set HFLAGS, 0x88
        .set RIP_AT, 0x90
        .set SEG_CS, 0x98               # u32 selector, pad, u64 base, u32 limit, u32 flags
        .set SEG_SS, 0xa0
        .set RCX_AT, 0xa8
        .set R11_AT, 0xb0
        .set UC, 0xb8
        .set TLB_FILL, 0xc0             # x86_cpu_tlb_fill(cpu, gva, size, access, mmu_idx, probe, retaddr)
        .set TLB_FAST, 0xc8             # per mmu_idx: u64 mask, entry *table
        .set RAM_ADDRESS, 0xd0          # qemu_ram_addr_from_host(uc, host)
        .set DROP_CODE, 0xd8            # tb_invalidate_phys_range(uc, from, to)
        .set CODE_PAGES, 0xe0           # a byte per page of the library's RAM: code was translated from it
        .set ERROR_CODE, 0xe8
        .set PORT_IN, 0xf0              # Python: u32 (uc, port, size, table)
        .set PORT_OUT, 0xf8             # Python: void (uc, port, size, value, table)
        .set CHECK_IOB, 0x100           # helper_check_iob(env, port), and for 2 and 4 bytes
        .set CHECK_IOW, 0x108
        .set CHECK_IOL, 0x110
        .set LENT, 0x118                # no address: 1 while a TLB entry is filled for an access of user code
        .set LOOP_EXIT, 0x120           # cpu_loop_exit_noexc(cpu), never returns
        .set LEAVE, 0x128               # set by Python: leave the block behind an OUT of this length
        .set GENERATED, 0x130           # where the library keeps the end of the translated code
        .set BUFFER, 0x138              # where it keeps the start
        .set SWEPT, 0x140               # no address: the end at the last look
        .set HEAD, 0x148                # no addresses: what blocks begin with, 8 bytes and 4 more
        .set HEAD_END, 0x150
        .set CHECK_EXIT, 0x158          # helper_check_exit_request(uc, 0)
        .set QUICK, 0x160               # no address: what they shall begin with, the first 8 bytes

        # CPUTLBEntry
        .set ADDR_READ, 0x00
        .set ADDR_WRITE, 0x08
        .set ADDR_CODE, 0x10
        .set ADDEND, 0x20
        .set PADDR, 0x18
        .set TLB_INVALID, 0x800         # what is filled with it set serves the one access that it was filled for

        .set NO_SMAP, 2                 # mmu_idx of the supervisor where SMAP is off; 0 where it is on

# void interrupt(uc, u32 number, table): UC_HOOK_INTR.
# Below 0x100 an exception of the guest's: into its IDT. Above, an intercept: Python's answer is 0 to
# go on, 0x100 | vector for an external interrupt, 0x200 | vector for an exception.
interrupt:
        push    rbx
        mov     rbx, rdx
        cmp     esi, 0x100
        jae     1f
        cmp     qword ptr [rbx + LENT], 0
        jne     8f
6:      # The library has put RIP behind an INT already, but a fault in its delivery is a fault at the
        # INT: 1 byte where the vector is 3 or 4 (INT3, INTO), else 2.
        mov     rcx, [rbx + IS_INT]
        cmp     dword ptr [rcx], 0
        je      4f
        lea     eax, [rsi - 3]
        cmp     eax, 2
        sbb     rax, rax
        add     rax, 2
        mov     rcx, [rbx + RIP_AT]
        sub     [rcx], rax
        jmp     0f
        # A fault in a delivery names the gate as 8 * vector + 2; in long mode the library says 16 * vector + 2.
4:      cmp     esi, 11                 # #NP
        je      5f
        cmp     esi, 13                 # #GP
        jne     0f
5:      mov     rcx, [rbx + HFLAGS]
        test    dword ptr [rcx], 0x4000 # LMA
        jz      0f
        mov     rcx, [rbx + ERROR_CODE]
        test    byte ptr [rcx], 2       # IDT
        jz      0f
        mov     eax, [rcx]
        shr     eax
        inc     eax
        mov     [rcx], eax
0:      mov     rdi, [rbx + CPU]
        call    [rbx + DO_INTERRUPT]
        jmp     3f
1:      call    [rbx + INTERCEPT]
        test    eax, eax
        jz      3f
        movzx   esi, al
        test    eax, 0x200
        jnz     2f
        mov     rdi, [rbx + ENV]
        mov     edx, 1
        call    [rbx + DO_HARDIRQ]
        jmp     3f
2:      mov     rcx, [rbx + EXCEPTION_INDEX]
        mov     [rcx], esi
        mov     rcx, [rbx + IS_INT]
        mov     dword ptr [rcx], 0
        mov     rdi, [rbx + CPU]
        call    [rbx + DO_INTERRUPT]
        # An INT n leaves exception_is_int set, and the next intercept would resume behind that INT.
3:      mov     rcx, [rbx + IS_INT]
        mov     dword ptr [rcx], 0
        pop     rbx
        ret
        # The page fault of a user's access, made as the supervisor's: see `fill`.
8:      mov     qword ptr [rbx + LENT], 0
        mov     rcx, [rbx + ERROR_CODE]
        or      dword ptr [rcx], 4      # U/S
        jmp     6b
        .balign 16

# bool invalid(uc, table): UC_HOOK_INSN_INVALID. #UD into the guest's IDT.
invalid:
        push    rbx
        mov     rbx, rsi
        mov     rdi, [rbx + CPU]
        call    [rbx + DO_INTERRUPT]
        mov     rcx, [rbx + IS_INT]
        mov     dword ptr [rcx], 0
        mov     eax, 1
        pop     rbx
        ret
        .balign 16

# Self-modifying code. The library checks a store against translated code unless it marked the TLB
# entry dirty, which it does at the first store through an entry that is not executable. Both ways are
# wrong for us: a page reached by two mappings then runs stale code, and stores to pages that are
# mapped executable but hold only data (a kernel unpacking itself) are some 30 times slower. So we
# note which pages have had code translated from them, and decide at each TLB fill: stores to other
# pages may be marked dirty whatever the mapping; stores to code pages never.

# void edge(uc, uc_tb *cur, uc_tb *prev, table): UC_HOOK_EDGE_GENERATED, a block was translated.
edge:
        push    rbx
        push    rbp
        sub     rsp, 8
        mov     rbx, rcx
        mov     rbp, rsi
        mov     rsi, [rbp]              # pc
        call    1f
        mov     rsi, [rbp]
        movzx   eax, word ptr [rbp + 10] # size in bytes
        lea     rsi, [rsi + rax - 1]
        mov     rax, [rbp]
        xor     rax, rsi
        test    eax, 0xfffff000
        jz      3f
        call    1f
3:      call    quicken
        add     rsp, 8
        pop     rbp
        pop     rbx
        ret
1:      sub     rsp, 8
        mov     rdi, [rbx + ENV]
        xor     edx, edx
        call    [rbx + CODE_PAGE]
        cmp     rax, -1
        je      2f
        shr     rax, 12
        add     rax, [rbx + CODE_PAGES]
        cmp     byte ptr [rax], 0
        jne     2f
        mov     byte ptr [rax], 1
        mov     rdi, [rbx + CPU]        # entries made while it was a data page
        call    [rbx + TLB_FLUSH]
2:      add     rsp, 8
        ret
        .balign 16

# The library begins each block with a call that looks whether to leave translated code:
#       movabs  rdi, uc
#       xor     esi, esi
#       call    [rip + disp]            # helper_check_exit_request, from the block's constants; or `call rel32`
# A sixth of a guest's time can go there. We look at once, as QEMU's blocks do, and call for a reason only:
#       cmp     dword ptr [rbp - 16], 0 # RBP is ENV; the flag lies just before it
#       jns     1f
#       call    block - 32              # the room behind the block's descriptor has the rest, with a jump in
#       nop                             # place of the call: the library finds the block by the return address,
# 1:                                    # which must be in it

# Quickens the blocks translated since the last look. RBX: the table. Blocks lie at multiples of 64.
quicken:
        mov     rcx, [rbx + GENERATED]
        mov     rcx, [rcx]
        mov     rdx, [rbx + SWEPT]
        mov     [rbx + SWEPT], rcx
        cmp     rdx, rcx
        jbe     1f
        mov     rdx, [rbx + BUFFER]     # the library has dropped all code and begun anew
        mov     rdx, [rdx]
1:      add     rdx, 63
        and     rdx, -64
        mov     rax, rcx
        sub     rax, rdx
        cmp     rax, 0x100000           # a part of the buffer that we have not seen grow
        ja      5f
2:      cmp     rdx, rcx
        jae     5f
        mov     rax, [rdx]
        cmp     rax, [rbx + HEAD]
        jne     4f
        mov     rsi, [rdx + 8]
        cmp     esi, [rbx + HEAD_END]
        jne     4f
        mov     rdi, [rbx + QUICK]
        cmp     byte ptr [rdx + 12], 0xe8
        je      3f
        cmp     word ptr [rdx + 12], 0x15ff
        jne     4f
        movsxd  r9, dword ptr [rdx + 14]
        lea     r8, [rdx + r9 + 18]     # the constant
        cmp     r8, rdx
        jb      4f
        cmp     r8, rcx
        jae     4f
        mov     r8, [r8]
        cmp     r8, [rbx + CHECK_EXIT]
        jne     4f
        mov     [rdx - 32], rax
        mov     [rdx - 24], rsi
        mov     byte ptr [rdx - 19], 0x25 # jmp [rip + disp]
        add     r9d, 32
        mov     [rdx - 18], r9d
        movabs  rax, 0x0000801f0fffffff # the end of the call, a NOP of 7 bytes
        mov     [rdx], rdi
        mov     [rdx + 8], rax
        mov     word ptr [rdx + 16], 0
        jmp     4f
3:      movsxd  r9, dword ptr [rdx + 13]
        lea     r8, [rdx + r9 + 17]
        cmp     r8, [rbx + CHECK_EXIT]
        jne     4f
        mov     [rdx - 32], rax
        mov     [rdx - 24], esi
        mov     byte ptr [rdx - 20], 0xe9 # jmp rel32
        add     r9d, 32
        mov     [rdx - 19], r9d
        movabs  rax, 0x0000010000000000 # a byte less to jump over
        sub     rdi, rax
        movabs  rax, 0x00441f0f66ffffff # the end of the call, a NOP of 6 bytes
        mov     [rdx], rdi
        mov     [rdx + 8], rax
        mov     byte ptr [rdx + 16], 0
4:      add     rdx, 64
        jmp     2b
5:      ret
        .balign 16

# IRET and far RET at CPL 3 pop from the user's stack. The library makes these accesses the supervisor's,
# and with SMAP they fault. Such a fill, known by CPL 3 and an address in translated code to return to
# (the delivery of an exception has none), is done as if SMAP were off, and serves that one access.

# bool fill(cpu, gva, size, access, mmu_idx, probe, retaddr): in place of x86_cpu_tlb_fill, which
# leaves by longjmp where it faults. It gets no user data: the table's address is behind the code.
fill:
        push    rbx
        push    rbp
        push    r12
        push    r13
        mov     rbx, [rip + table]
        mov     rbp, rsi
        mov     r12d, ecx               # 0 load, 1 store, 2 fetch
        mov     r13d, r8d
        test    r8d, r8d                # the supervisor's, with SMAP
        jz      5f
0:      push    [rsp + 40]              # retaddr
        call    [rbx + TLB_FILL]
        add     rsp, 8
        test    al, al
        jz      4f
        cmp     r12d, 2
        je      3f
        shl     r13, 4
        add     r13, [rbx + TLB_FAST]
        mov     rdx, rbp
        shr     rdx, 6
        and     rdx, [r13]
        add     rdx, [r13 + 8]
        mov     r13, rdx                # the entry
        mov     rax, [r13 + ADDR_WRITE]
        cmp     rax, -1                 # not writable
        je      3f
        test    eax, 0x200              # I/O
        jnz     3f
        and     rbp, -4096
        mov     rsi, rbp
        add     rsi, [r13 + ADDEND]
        mov     rdi, [rbx + UC]
        sub     rsp, 8
        call    [rbx + RAM_ADDRESS]
        add     rsp, 8
        mov     rdx, rax
        shr     rdx, 12
        add     rdx, [rbx + CODE_PAGES]
        cmp     byte ptr [rdx], 0
        je      2f
        cmp     qword ptr [r13 + ADDR_CODE], -1
        jne     3f                      # executable: the library never marks it dirty
        cmp     r12d, 1
        je      1f
        or      rbp, TLB_INVALID        # no fetch hits it, and it is not -1
        mov     [r13 + ADDR_CODE], rbp
        jmp     3f
1:      mov     byte ptr [rdx], 0       # a store by a data mapping: the page is reused, or patched
        mov     rdi, [rbx + UC]
        mov     rsi, rax
        lea     rdx, [rax + 4096]
        sub     rsp, 8
        call    [rbx + DROP_CODE]
        add     rsp, 8
2:      mov     qword ptr [r13 + ADDR_CODE], -1
3:      cmp     qword ptr [rbx + LENT], 0
        jne     6f
7:      mov     eax, 1
4:      pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret
5:      cmp     qword ptr [rsp + 40], 0
        je      0b
        mov     rax, [rbx + HFLAGS]
        mov     eax, [rax]
        not     eax
        test    al, 3                   # CPL
        jnz     0b
        mov     r8d, NO_SMAP
        mov     r13d, r8d
        mov     qword ptr [rbx + LENT], 1
        jmp     0b
6:      mov     qword ptr [rbx + LENT], 0
        mov     rax, [rbx + TLB_FAST]
        mov     rsi, rbp
        shr     rbp, 6
        mov     rdx, rbp
        and     rdx, [rax + 16 * NO_SMAP]
        add     rdx, [rax + 16 * NO_SMAP + 8]
        test    dword ptr [rdx + ADDR_READ], 0x200
        jnz     8f                      # I/O: no place for a stack
        and     rbp, [rax]
        add     rbp, [rax + 8]
        mov     rax, [rdx + ADDR_READ]
        or      rax, TLB_INVALID
        mov     [rbp + ADDR_READ], rax
        mov     rax, [rdx + ADDR_WRITE]
        or      rax, TLB_INVALID
        mov     [rbp + ADDR_WRITE], rax
        mov     qword ptr [rbp + ADDR_CODE], -1
        mov     rax, [rdx + PADDR]
        mov     [rbp + PADDR], rax
        mov     rax, [rdx + ADDEND]
        mov     [rbp + ADDEND], rax
        jmp     7b
8:      mov     rdi, [rbx + CPU]
        mov     edx, 1
        mov     ecx, r12d
        xor     r8d, r8d
        xor     r9d, r9d
        push    [rsp + 40]
        call    [rbx + TLB_FILL]        # which faults
        add     rsp, 8
        jmp     4b
        .balign 16

# IN and OUT, and their string instructions. The library lets everybody use every port. By the SDM
# vol. 1, "I/O Privilege Level": above IOPL, and in virtual-8086 mode, the TSS's I/O permission bit map decides.

# u32 port_in(uc, u32 port, int size, table), void port_out(uc, u32 port, int size, u32 value, table): UC_HOOK_INSN.
port_in:
        push    rbx
        mov     rbx, rcx
        call    may
        mov     rcx, rbx
        mov     rax, [rbx + PORT_IN]
        pop     rbx
        jmp     rax
port_out:
        push    rbx
        mov     rbx, r8
        call    may
        mov     r8, rbx
        call    [rbx + PORT_OUT]
        # An interrupt has come of it: get in behind the OUT, not at the end of the block of code.
        mov     rax, [rbx + LEAVE]      # the instruction's length
        test    eax, eax
        jnz     1f
        pop     rbx
        ret
1:      mov     qword ptr [rbx + LEAVE], 0
        mov     rdx, [rbx + RIP_AT]
        add     [rdx], rax
        mov     rdi, [rbx + CPU]
        call    [rbx + LOOP_EXIT]
        ud2
        # Return if the access is allowed; else #GP. Keeps rdi, esi, edx, ecx.
may:    mov     rax, [rbx + HFLAGS]
        mov     eax, [rax]
        test    eax, 0x20003            # VM, CPL
        jz      2f
        test    eax, 0x20000
        jnz     1f
        mov     r9d, eax
        and     r9d, 3
        shr     eax, 12
        and     eax, 3                  # IOPL
        cmp     r9d, eax
        jbe     2f
1:      push    rdi
        push    rsi
        push    rdx
        push    rcx
        mov     rdi, [rbx + ENV]
        shr     edx                     # 1, 2, 4 to 0, 1, 2
        call    [rbx + rdx * 8 + CHECK_IOB]
        pop     rcx
        pop     rdx
        pop     rsi
        pop     rdi
2:      ret
        .balign 16

# void syscall(uc, table): UC_HOOK_INSN for SYSCALL, by the AMD64 APM vol. 3. The library adds the
# instruction's 2 bytes to RIP afterwards.
syscall:
        push    rbx
        push    rbp
        push    r12
        mov     rbx, rsi
        mov     rax, [rbx + EFER]
        test    byte ptr [rax], 1       # SCE
        jz      4f
        mov     rdi, [rbx + ENV]
        call    [rbx + READ_EFLAGS]
        mov     ebp, eax
        mov     rdx, [rbx + RIP_AT]
        mov     rax, [rdx]
        add     rax, 2
        mov     r12, [rbx + STAR]
        mov     r12, [r12]              # [31:0] legacy target, [47:32] selectors
        mov     rcx, [rbx + HFLAGS]
        mov     esi, [rcx]
        test    esi, 0x4000             # LMA
        jz      1f
        mov     rdx, [rbx + RCX_AT]
        mov     [rdx], rax
        mov     rdx, [rbx + R11_AT]
        mov     eax, ebp
        and     eax, 0xfffeffff         # RF is not saved
        mov     [rdx], rax
        mov     rdx, [rbx + LSTAR]
        test    esi, 0x8000             # CS64
        jnz     2f
        mov     rdx, [rbx + CSTAR]
2:      mov     rax, [rdx]
        mov     rdx, [rbx + FMASK]
        mov     r8d, [rdx]
        or      r8d, 0x10000            # RF
        not     r8d
        and     esi, 0xffffffbc         # CPL, ADDSEG
        or      esi, 0x8030             # CS64, SS32, CS32
        mov     r9d, 0x00a09b00         # 64-bit code, DPL 0
        jmp     3f
1:      mov     eax, eax
        mov     rdx, [rbx + RCX_AT]
        mov     [rdx], rax
        mov     eax, r12d
        mov     r8d, 0xfffcfdff         # clears VM, RF, IF
        and     esi, 0xffff7fbc         # CPL, ADDSEG, CS64
        or      esi, 0x30               # SS32, CS32
        mov     r9d, 0x00c09b00         # 32-bit code, DPL 0
3:      mov     [rcx], esi
        sub     rax, 2
        mov     rdx, [rbx + RIP_AT]
        mov     [rdx], rax
        shr     r12, 32
        and     r12d, 0xfffc
        mov     rdx, [rbx + SEG_CS]
        mov     [rdx], r12d
        mov     qword ptr [rdx + 8], 0
        mov     dword ptr [rdx + 16], 0xffffffff
        mov     [rdx + 20], r9d
        add     r12d, 8
        and     r12d, 0xfffc
        mov     rdx, [rbx + SEG_SS]
        mov     [rdx], r12d
        mov     qword ptr [rdx + 8], 0
        mov     dword ptr [rdx + 16], 0xffffffff
        mov     dword ptr [rdx + 20], 0x00c09300
        mov     rdi, [rbx + ENV]
        mov     esi, ebp
        and     esi, r8d
        mov     edx, 0x277fd7           # all flags that can change
        call    [rbx + WRITE_EFLAGS]
        pop     r12
        pop     rbp
        pop     rbx
        ret
4:      mov     rdi, [rbx + ENV]
        mov     esi, 6
        call    [rbx + RAISE_EXCEPTION]
        ud2
        .balign 16

# u64 rdtsc(void)
rdtsc:
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        ret
        .balign 16

table:  .quad   0
end:
