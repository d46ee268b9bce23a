# From the firmware to Rust: the PVH entry of CPU 0, the real-mode entry of the others, and the first page tables.
# (Intel syntax.) Everything in .boot.* lies at its physical address; see linker.ld.

.set TABLE, 0x003                       # present, writable
.set LARGE, 0x083                       # present, writable, a 2 MiB page
.set CODE64, 0x08                       # selectors of boot_gdt
.set CODE32, 0x10
.set DATA, 0x18

# XEN_ELFNOTE_PHYS32_ENTRY tells the loader to enter pvh_start in 32-bit mode without paging.
.section .note.pvh, "a", @note
.balign 4
    .long 4, 8, 18                      # name size, descriptor size, type
    .asciz "Xen"
    .quad pvh_start

.section .boot.text, "ax", @progbits

# CPU 0 comes here with EBX = the physical address of hvm_start_info.
.code32
.global pvh_start
pvh_start:
    cli
    cld
    lgdt [boot_gdt_pointer]
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, ebx                        # the first argument of start
    jmp enable_long_mode

# The other CPUs come here from the trampoline below.
ap_protected:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor edi, edi

enable_long_mode:
    mov eax, cr4
    or eax, 0x620                       # PAE, and SSE: OSFXSR, OSXMMEXCPT
    mov cr4, eax
    lea eax, [boot_pml4]
    mov cr3, eax
    mov ecx, 0xc0000080                 # EFER
    rdmsr
    or eax, 0x100                       # LME
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffffb                 # caches on (CD, NW), no FPU emulation (EM)
    or eax, 0x80010003                  # PG, WP, MP, PE
    mov cr0, eax
    .byte 0xea                          # a far jump into 64-bit code
    .long long_mode
    .word CODE64

.code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    movabs rax, offset enter_kernel
    jmp rax

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # CODE64
    .quad 0x00cf9b000000ffff            # CODE32
    .quad 0x00cf93000000ffff            # DATA
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

# The first 4 GiB of physical memory, in 2 MiB pages, in three places: at 0 (until every CPU has left this file), at
# DIRECT_MAP, and the first of them at KERNEL_BASE. paging.rs adds to them what lies above.
.section .boot.tables, "aw", @progbits
.balign 4096
boot_pml4:
    .quad boot_pdpt + TABLE
    .fill {direct_map_entry} - 1, 8, 0
    .quad boot_pdpt + TABLE             # DIRECT_MAP
    .fill 510 - {direct_map_entry}, 8, 0
    .quad kernel_pdpt + TABLE           # KERNEL_BASE
boot_pdpt:
    .quad boot_pd + TABLE
    .quad boot_pd + 0x1000 + TABLE
    .quad boot_pd + 0x2000 + TABLE
    .quad boot_pd + 0x3000 + TABLE
    .fill 508, 8, 0
kernel_pdpt:
    .fill 510, 8, 0
    .quad boot_pd + TABLE
    .quad 0
boot_pd:
.set address, 0
.rept 2048
    .quad address + LARGE
    .set address, address + 0x200000
.endr

# At last where the kernel is linked: take the stack of the CPU that is starting (0 is the first) and call Rust.
.section .text.enter_kernel, "ax", @progbits
enter_kernel:
    mov esi, [rip + {starting}]
    imul rax, rsi, {stacks_bytes}
    lea rsp, [rip + {stacks} + {main_stack_bytes}]
    add rsp, rax
    xor ebp, ebp                        # the end of the chain of frames
    call {start}                        # start(start info, CPU)
    ud2

# The other CPUs start in real mode, at a copy of this code in a page below 1 MiB: CS = page / 16, IP = 0. What is read
# before the jump is addressed by CS, so that any page will do.
.section .rodata.ap_trampoline, "a", @progbits
.code16
.global ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    cld
    lgdtd cs:[ap_gdt_offset]
    mov eax, cr0
    or eax, 1                           # PE
    mov cr0, eax
    .byte 0x66, 0xea                    # a far jump with a 32-bit offset
    .long ap_protected
    .word CODE32
ap_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
ap_trampoline_end:
.set ap_gdt_offset, ap_gdt_pointer - ap_trampoline
.code64
