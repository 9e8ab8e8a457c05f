/* The 256 interrupt entry points: every one leads to trap_dispatch(struct trap *) and back through iret. */
#include "layout.h"

        .text
        .balign 16
        .globl  trap_stubs
trap_stubs:                             /* stub of vector v is at trap_stubs + 16 * v */
        .set    vector, 0
        .rept   256
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
        .else
        push    $0                      /* the CPU pushed no error code: keep the frame the same */
        .endif
        push    $vector
        jmp     trap_common
        .set    vector, vector + 1
        .endr

        .globl  trap_common
#ifdef __x86_64__
trap_common:
        push    %rax
        push    %rcx
        push    %rdx
        push    %rbx
        push    %rbp
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        push    %gs
        push    %fs
        mov     %es, %eax
        push    %rax
        mov     %ds, %eax
        push    %rax
        testb   $3, 176(%rsp)           /* CS of the interrupted code: segments need care only when it was ring 3 */
        jz      1f
        mov     $SEL_KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     $SEL_PERCPU, %eax
        mov     %eax, %fs
1:      cld
        mov     %rsp, %rdi
        call    trap_dispatch
        .globl  trap_return
trap_return:                            /* with a struct trap on the stack: see run.c */
        testb   $3, 176(%rsp)
        jz      2f
        mov     (%rsp), %eax
        mov     %eax, %ds
        mov     8(%rsp), %eax
        mov     %eax, %es
        mov     16(%rsp), %eax
        mov     %eax, %fs
2:      add     $32, %rsp
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rbp
        pop     %rbx
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $16, %rsp
        iretq

        .globl  load_gdt
load_gdt:                               /* load_gdt(pointer): new GDT, every segment register reloaded */
        lgdt    (%rdi)
        mov     $SEL_KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %gs
        mov     $SEL_PERCPU, %eax
        mov     %eax, %fs
        pop     %rax
        push    $SEL_KCODE
        push    %rax
        lretq
#else
trap_common:
        pusha
        push    %gs
        push    %fs
        push    %es
        push    %ds
        testb   $3, 60(%esp)
        jz      1f
        mov     $SEL_KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     $SEL_PERCPU, %eax
        mov     %eax, %fs
1:      cld
        push    %esp
        call    trap_dispatch
        add     $4, %esp
        .globl  trap_return
trap_return:
        testb   $3, 60(%esp)
        jz      2f
        mov     (%esp), %eax
        mov     %eax, %ds
        mov     4(%esp), %eax
        mov     %eax, %es
        mov     8(%esp), %eax
        mov     %eax, %fs
2:      add     $16, %esp
        popa
        add     $8, %esp
        iret

        .globl  load_gdt
load_gdt:
        mov     4(%esp), %eax
        lgdt    (%eax)
        mov     $SEL_KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %gs
        mov     $SEL_PERCPU, %eax
        mov     %eax, %fs
        pop     %eax
        push    $SEL_KCODE
        push    %eax
        lret
#endif
        .section .note.GNU-stack, "", @progbits
