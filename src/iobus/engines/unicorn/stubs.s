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
        .set RESET_DIRTY, 0x40          # tlb_reset_dirty(cpu, host page, length)
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

# void interrupt(uc, u32 number, table): UC_HOOK_INTR.
# Below 0x100 an exception of the guest's: into its IDT. Above, an intercept: Python's answer is 0 to
# go on, 0x100 | vector for an external interrupt, 0x200 | vector for an exception.
interrupt:
        push    rbx
        mov     rbx, rdx
        cmp     esi, 0x100
        jae     1f
        mov     rdi, [rbx + CPU]
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

# void edge(uc, uc_tb *cur, uc_tb *prev, table): UC_HOOK_EDGE_GENERATED, a block was translated.
# Makes the next store to its pages through any mapping come by the slow path, which invalidates.
edge:
        push    rbx
        push    rbp
        sub     rsp, 24
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
3:      add     rsp, 24
        pop     rbp
        pop     rbx
        ret
1:      sub     rsp, 8
        mov     rdi, [rbx + ENV]
        lea     rdx, [rsp + 16]
        mov     qword ptr [rdx], 0
        call    [rbx + CODE_PAGE]
        mov     rsi, [rsp + 16]
        and     rsi, -4096
        jz      2f
        mov     rdi, [rbx + CPU]
        mov     edx, 4096
        call    [rbx + RESET_DIRTY]
2:      add     rsp, 8
        ret
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
end:
