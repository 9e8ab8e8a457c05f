/* Multiboot start of the first CPU, and the real-mode trampoline of all the others; both end in C with paging on. */
#include "layout.h"

#ifdef __x86_64__
#define MB_FLAGS 0x00010003     /* page-align, memory info, and: use the address fields (the ELF class does not matter) */
#else
#define MB_FLAGS 0x00000003
#endif
#define MB_MAGIC 0x1BADB002

        .section .multiboot, "ax"
        .balign 4
multiboot_header:
        .long MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)
#ifdef __x86_64__
        .long multiboot_header, image_start, image_load_end, image_end, _start
#endif

        .text
        .code32
        .globl _start
_start: cli
        cld
        movl    %eax, multiboot_magic
        movl    %ebx, multiboot_info
        movl    $boot_stack_top, %esp
        lgdt    boot_gdt_pointer
        ljmp    $0x08, $1f
1:      call    fill_page_tables
        call    load_segments
        call    paging_on
#ifdef __x86_64__
        ljmp    $0x18, $1f
        .code64
1:      movl    $boot_stack_top, %esp
        xorl    %ebp, %ebp
        call    first_cpu
#else
        xorl    %ebp, %ebp
        call    first_cpu
#endif
1:      hlt
        jmp     1b

/* Identity map of 4 GiB with large supervisor pages. Upper levels carry the user bit, so single pages may be opened. */
        .code32
fill_page_tables:
#ifdef __x86_64__
        movl    $page_root + 0x1000 + 7, page_root
        movl    $page_root + 0x1000, %edi
        movl    $page_root + 0x2000 + 7, %eax
        movl    $4, %ecx
1:      movl    %eax, (%edi)
        addl    $0x1000, %eax
        addl    $8, %edi
        loop    1b
        movl    $page_root + 0x2000, %edi
        movl    $0x83, %eax
        movl    $2048, %ecx
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b
#else
        movl    $page_root, %edi
        movl    $0x83, %eax
        movl    $1024, %ecx
1:      movl    %eax, (%edi)
        addl    $0x400000, %eax
        addl    $4, %edi
        loop    1b
#endif
        ret

load_segments:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        ret

paging_on:
        movl    %cr4, %eax
#ifdef __x86_64__
        orl     $0x20, %eax             /* PAE */
#else
        orl     $0x10, %eax             /* PSE: 4 MB pages */
#endif
        movl    %eax, %cr4
        movl    $page_root, %eax
        movl    %eax, %cr3
#ifdef __x86_64__
        movl    $0xC0000080, %ecx       /* EFER.LME */
        rdmsr
        orl     $0x100, %eax
        wrmsr
#endif
        movl    $CR0_BITS, %eax
        movl    %eax, %cr0
        ret

/* An AP arrives here from the trampoline; ap_cpu is the struct cpu that the starting CPU prepared for it. */
ap_start32:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %ss
        movl    ap_stack_top, %esp
        call    load_segments
        call    paging_on
#ifdef __x86_64__
        ljmp    $0x18, $1f
        .code64
1:      movl    ap_stack_top, %esp
        movl    ap_cpu, %edi
        xorl    %ebp, %ebp
        call    next_cpu
#else
        movl    ap_stack_top, %esp
        xorl    %ebp, %ebp
        pushl   ap_cpu
        call    next_cpu
#endif
1:      hlt
        jmp     1b

/* Copied to TRAMPOLINE. A SIPI starts a CPU in real mode with CS = vector * 0x100, IP = 0. */
        .code16
        .globl trampoline, trampoline_end
trampoline:
        cli
        cld
        movw    %cs, %ax
        movw    %ax, %ds
        lgdtl   trampoline_gdt_pointer - trampoline
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $0x08, $ap_start32
        .balign 4
trampoline_gdt_pointer:
        .word   4 * 8 - 1
        .long   boot_gdt
trampoline_end:

        .data
        .balign 8
boot_gdt:
        .quad   0
        .quad   0x00CF9A000000FFFF      /* 0x08: 32-bit code */
        .quad   0x00CF92000000FFFF      /* 0x10: data */
        .quad   0x00AF9A000000FFFF      /* 0x18: 64-bit code */
boot_gdt_pointer:
        .word   4 * 8 - 1
        .long   boot_gdt
        .globl  multiboot_magic, multiboot_info, ap_stack_top, ap_cpu
        .balign 4
multiboot_magic: .long 0
multiboot_info:  .long 0
ap_stack_top:    .long 0
ap_cpu:          .long 0

        .bss
        .balign 4096
        .globl  page_root, boot_stack_top
page_root:
#ifdef __x86_64__
        .skip   6 * 4096                /* PML4, PDPT, four page directories */
#else
        .skip   4096
#endif
        .skip   STACK_SIZE
boot_stack_top:
        .section .note.GNU-stack, "", @progbits
