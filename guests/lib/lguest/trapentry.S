/* The 256 interrupt entry points: every one leads to machine_trap(struct trap *) and back through iret. */
#include "layout.h"

        .text
        .balign 16
        .globl  trap_stubs
trap_stubs:                             /* stub of vector v is at trap_stubs + 16 * v */
        .set    vector, 0
        .rept   256
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17)
        .else
        push    $0                      /* no error code here: keep the frame the same */
        .endif
        push    $vector
        jmp     trap_common
        .set    vector, vector + 1
        .endr

        .globl  trap_common
trap_common:
        pusha
        push    %gs
        push    %fs
        push    %es
        push    %ds
        testb   $2, 60(%esp)            /* CS of the interrupted code: ring 3, not ring 1 */
        jz      1f
        mov     $SEL_KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     $SEL_PERCPU, %eax
        mov     %eax, %fs
1:      cld
        push    %esp
        call    machine_trap
        add     $4, %esp
/* A struct trap is on the stack: see run.c. Two of its words are free by now: the vector's takes the address of this CPU's
   irq_enabled, the error's what belongs there, because %fs and all registers are the interrupted code's at the end. */
        .globl  trap_return
trap_return:
        mov     %fs:0, %ecx
        add     $CPU_IRQ_ENABLED, %ecx
        mov     64(%esp), %eax
        and     $0x200, %eax            /* Linux stores all flags; so its "off" is not 0, which the Host takes for "on" */
        mov     %ecx, 48(%esp)
        mov     %eax, 52(%esp)
        testb   $2, 60(%esp)
        jz      2f
        mov     (%esp), %eax
        mov     %eax, %ds
        mov     4(%esp), %eax
        mov     %eax, %es
        mov     8(%esp), %eax
        mov     %eax, %fs
        mov     12(%esp), %eax
        mov     %eax, %gs
2:      add     $16, %esp
        popa
        push    %eax
        push    %ecx
        mov     8(%esp), %ecx
        mov     12(%esp), %eax

        jmp     last_steps

/* Interrupts are off until the store, and the Host delivers none from here to the end of iret: it looks at eip, and link.ld
   has named the ends of this section. (A test has more of it.) */
        .section .noirq, "ax"
last_steps:
        mov     %eax, %ss:(%ecx)
        pop     %ecx
        pop     %eax
        add     $8, %esp
        iret
        .section .note.GNU-stack, "", @progbits
