/* The first instructions of each CPU: ring 1, no stack, virtual is physical. An image whose page_offset is not 0 is linked
   for addresses that far above those it lies at, as Linux is: until its tables are in use nothing but registers may hold
   an address, and page_offset is taken from each. */
#include "layout.h"

        .text
        .globl  _start
_start: cld
        movl    $page_offset, %edi
        movl    $cpus, %esi
        subl    %edi, %esi
        movl    $boot_stack_top, CPU_STACK_TOP(%esi)
        testl   %edi, %edi
        jnz     high_tables
        movl    $before_init, %eax
        testl   %eax, %eax
        jz      start_cpu
        movl    $boot_stack_top, %esp
        xorl    %ebp, %ebp
        call    *%eax
        movl    $cpus, %esi
        xorl    %edi, %edi
        jmp     start_cpu

/* The first 16 MB, at 0 and at page_offset: as long as code still runs at its physical address. */
high_tables:
        movl    $boot_tables, %ebx
        subl    %edi, %ebx
        movl    $3, %eax                /* present, writable */
        movl    $4 * 1024, %ecx
1:      movl    %eax, (%ebx)
        addl    $0x1000, %eax
        addl    $4, %ebx
        loop    1b
        movl    $boot_root, %ebx
        subl    %edi, %ebx
        movl    %edi, %edx
        shrl    $20, %edx               /* in the root: 4 bytes for each 4 MB */
        movl    $boot_tables + 3, %eax
        subl    %edi, %eax
        movl    $4, %ecx
1:      movl    %eax, (%ebx)
        movl    %eax, (%ebx, %edx)
        addl    $0x1000, %eax
        addl    $4, %ebx
        loop    1b
        jmp     start_cpu

/* CPU_UP's eip; its argument, in %esi, is the struct cpu that the starting CPU has prepared. */
        .globl  next_start
next_start:
        cld
        movl    $page_offset, %edi

/* %esi: struct cpu; %edi: page_offset. No other hypercall comes before LGUEST_INIT. */
start_cpu:
        movl    $0xFFFFFFFF, CPU_BLOCKED(%esi)  /* until there are gates */
        movl    $noirq_start, CPU_NOIRQ(%esi)
        movl    $noirq_end, CPU_NOIRQ + 4(%esi)
        movl    $0xC0000000, CPU_NOIRQ + 8(%esi)
        movl    $0x80, CPU_NOIRQ + 12(%esi)
        movl    %edi, %edx
        leal    CPU_STATUS(%esi), %edi
        movb    $0xFF, %al              /* all slots of the ring are free */
        movl    $64, %ecx
        rep stosb
        movl    %edx, %edi
        movl    $1, %eax                /* LGUEST_INIT */
        leal    CPU_DATA(%esi), %ebx
        int     $0x1f
        testl   %edi, %edi
        jz      1f
        movl    $4, %eax                /* NEW_PGTABLE */
        movl    $boot_root, %ebx
        subl    %edi, %ebx
        int     $0x1f
        addl    %edi, %esi
1:      movl    CPU_STACK_TOP(%esi), %esp
        xorl    %ebp, %ebp
        pushl   %esi
        movl    $start_in_c, %eax
        call    *%eax                   /* it does not return */

        .weak   before_init

        .section .rodata
        .globl  made_for
made_for:
        .string "smpguest: a guest for lguest"  /* by which a Launcher may guess the machine */

        .bss
        .balign 4096
        .globl  page_root, boot_stack_top
page_root:
        .skip   4096
boot_root:
        .skip   4096
boot_tables:
        .skip   4 * 4096
        .skip   STACK_SIZE
boot_stack_top:
        .section .note.GNU-stack, "", @progbits
