# The high-level BIOS: what the guest's processor itself must execute. All else is served by the VMM, in
# src/vm/boot/bios/, when a slot below writes to the BIOS port.
#
#   F000:F000  slots, 8 bytes each: the targets of the interrupt vectors
#        F080  handlers that stay in the guest, configuration table
#        FFF0  reset vector, date, model byte
#
# Assembled by rustc (AT&T syntax, 16-bit code) into a section that is only ever read as data, and copied to
# the end of the segment F000. So nothing here has an absolute address: labels count from the image's start.
# They begin with .L, which keeps them out of the object file.
#
# Protocol of a slot. The VMM finds the slot by CS:IP, which may be at the OUT or just after it, depending on
# how KVM ran it. It reads and changes the registers, except RIP, and the FLAGS that the INT instruction
# pushed, at SS:SP+4: IRET returns CF and ZF through them. The live CF is between the slot and the VMM: set
# on return it means "not done yet, ask again", and set on entry it means "asked before". A caller that waits
# for a key is therefore in guest code between two short waits, and can be paused there or take an IRQ.

        .set    PORT, 0xb8
        .set    SEGMENT, 0xf000
        .set    BASE, 0xf000            # offset of the image in the segment
        .set    SIZE, 0x1000

        .section .rodata.cowvm_bios, "a"
        .code16
        .balign 16
        .globl  cowvm_bios_start
        .hidden cowvm_bios_start
cowvm_bios_start:

        .macro  call_vmm
        clc
1:      out     %al, $PORT
        jc      1b
        .endm

        # Slots 0 to 10: INT 10h to 1Ah. INT 19h goes on to the boot sector.
        .rept   9
        call_vmm
        iret
        .balign 8
        .endr
        call_vmm
        jmp     .Lenter_boot_sector
        .balign 8
        call_vmm
        iret
        .balign 8

        # Slot 11: power on. The VMM writes the interrupt vectors and the BIOS data area.
.Lslot_power_on:
        call_vmm
        jmp     .Lboot
        .balign 8

        # Slots 12 to 15: IRQ 0, the master's other IRQs, the slave's, and vectors that nobody serves.
        jmp     .Ltimer_tick
        .balign 8
        jmp     .Lend_master
        .balign 8
        jmp     .Lend_slave
        .balign 8
        iret
        .balign 8

# After reset. The stack is the traditional one, below the boot sector.
.Lpower_on:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        # Both interrupt controllers: edge triggered, cascade on IRQ 2, vectors 08h and 70h.
        mov     $0x11, %al
        out     %al, $0x20
        out     %al, $0xa0
        mov     $0x08, %al
        out     %al, $0x21
        mov     $0x70, %al
        out     %al, $0xa1
        mov     $0x04, %al
        out     %al, $0x21
        mov     $0x02, %al
        out     %al, $0xa1
        mov     $0x01, %al
        out     %al, $0x21
        out     %al, $0xa1
        # The timer and the cascade are let through; who drives another device unmasks it.
        mov     $0xfa, %al
        out     %al, $0x21
        mov     $0xff, %al
        out     %al, $0xa1
        # Timer 0: square wave, 65536 counts, 18.2 Hz.
        mov     $0x36, %al
        out     %al, $0x43
        xor     %al, %al
        out     %al, $0x40
        out     %al, $0x40
        jmp     .Lslot_power_on
.Lboot:
        sti
        int     $0x19

# INT 19h, after the VMM has put the boot sector in place.
.Lenter_boot_sector:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        mov     $0x80, %dx              # the first disk
        sti
        ljmp    $0, $0x7c00

# IRQ 0: counts at 40:6C, 0x1800b0 ticks a day; 40:70 says that midnight has passed.
.Ltimer_tick:
        push    %ds
        push    %ax
        mov     $0x40, %ax
        mov     %ax, %ds
        incl    0x6c
        cmpl    $0x1800b0, 0x6c
        jb      2f
        movl    $0, 0x6c
        movb    $1, 0x70
2:      int     $0x1c
        mov     $0x20, %al
        out     %al, $0x20
        pop     %ax
        pop     %ds
        iret

.Lend_slave:
        push    %ax
        mov     $0x20, %al
        out     %al, $0xa0
        jmp     3f
.Lend_master:
        push    %ax
        mov     $0x20, %al
3:      out     %al, $0x20
        pop     %ax
        iret

        # INT 15h AH=C0h: 8 bytes follow; AT model; features: second 8259, RTC, INT 1Ch, EBDA.
        .org    cowvm_bios_start + 0xfe0
        .word   8
        .byte   0xfc, 0, 1, 0x64, 0, 0, 0, 0

        .org    cowvm_bios_start + 0xff0
        ljmp    $SEGMENT, $(.Lpower_on - cowvm_bios_start + BASE)
        .ascii  "01/01/26"
        .byte   0
        .byte   0xfc                    # model: AT
        .byte   0
        .org    cowvm_bios_start + SIZE
        .globl  cowvm_bios_end
        .hidden cowvm_bios_end
cowvm_bios_end:
        .code64
        .text
