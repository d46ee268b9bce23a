# The 256 entries of the interrupt descriptor table, 16 bytes apart, the entry of system calls, and the way to and from
# `interrupt`. (Intel syntax.)
#
# Each entry makes the stack look the same, a `Frame`: it pushes a zero where the CPU pushes no error code, then the vector.
# Every gate switches to a stack of its own, so the red zone of interrupted kernel code stays as it was. What comes
# from ring 3 moves on to the thread's own kernel stack, on which it may wait and be switched away from.

.set WORDS, 22                          # of a Frame without the SSE registers
.set FRAME, WORDS * 8
.set FX, 512
.set AT_VECTOR, 15 * 8
.set AT_RIP, 17 * 8
.set AT_CS, 18 * 8
.set AT_FLAGS, 19 * 8
.set AT_RSP, 20 * 8
.set SYSCALL_VECTOR, 256

.macro push_registers
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
.endm

.macro pop_registers
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
.endm

.section .text.interrupt_entries, "ax", @progbits
.balign 16
.global interrupt_entries, syscall_entry, thread_entry, switch_stacks
interrupt_entries:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 21) | (vector == 29) | (vector == 30)
    .else
    push 0
    .endif
    .byte 0x68                          # push a 32-bit number
    .long vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

interrupt_common:
    push_registers
    cld
    test byte ptr [rsp + AT_CS], 3
    jz 1f
    swapgs                              # from ring 3: gs is the user's
    mov rsi, rsp
    mov rdi, gs:[{kernel_stack}]
    sub rdi, FRAME
    mov rsp, rdi
    mov ecx, WORDS
    rep movsq
1:  sub rsp, FX
    fxsave64 [rsp]                      # compiled code uses SSE registers
    mov rdi, rsp                        # the argument: &mut Frame
    call {interrupt}

# Back to where the Frame at rsp says, with interrupts off.
return_from_interrupt:
    fxrstor64 [rsp]
    add rsp, FX
    test byte ptr [rsp + AT_CS], 3
    jz 1f
    cmp qword ptr [rsp + AT_VECTOR], SYSCALL_VECTOR
    je 2f
    swapgs
1:  pop_registers
    add rsp, 16                         # the vector and the error code
    iretq
# A system call that goes back to where it came from: rcx and r11 are what `syscall` made them. rip is canonical, since
# no instruction can lie in the last page of the user's half, which is never mapped.
2:  pop_registers
    mov rcx, [rsp + AT_RIP - AT_VECTOR]
    mov r11, [rsp + AT_FLAGS - AT_VECTOR]
    mov rsp, [rsp + AT_RSP - AT_VECTOR]
    swapgs
    sysretq

# System calls come here with interrupts off, on the user's stack: rcx is rip, r11 the flags.
syscall_entry:
    swapgs
    mov gs:[{user_stack}], rsp
    mov rsp, gs:[{kernel_stack}]
    push {user_data}
    push gs:[{user_stack}]
    push r11
    push {user_code}
    push rcx
    push 0
    push SYSCALL_VECTOR
    push_registers
    sub rsp, FX
    fxsave64 [rsp]
    mov rdi, rsp
    call {interrupt}
    jmp return_from_interrupt

# switch_stacks(from: *mut u64, to: u64): leaves the thread whose stack pointer goes to *from, goes on with the other.
switch_stacks:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# A new thread begins here; what it does ends with the way to ring 3, or never.
thread_entry:
    call {thread_begins}
    mov rsp, gs:[{kernel_stack}]
    sub rsp, FRAME + FX
    jmp return_from_interrupt
