# The 256 entries of the interrupt descriptor table, 16 bytes apart, and the way to and from `interrupt`. (Intel syntax.)
#
# Each entry makes the stack look the same: it pushes a zero where the CPU pushes no error code, then the vector.
# Every gate switches to a stack of its own, so the red zone of the interrupted code stays as it was.

.section .text.interrupt_entries, "ax", @progbits
.balign 16
.global interrupt_entries
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
    cld
    mov rdi, rsp                        # the argument: &Frame
    mov rbp, rsp
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]                      # compiled code uses SSE registers
    call {interrupt}
    fxrstor64 [rsp]
    mov rsp, rbp
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
    add rsp, 16                         # the vector and the error code
    iretq
