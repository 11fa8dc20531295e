# The demo guest: a boot sector and a small monitor of its own, in real mode, on nothing but the BIOS. It shows
# that the disk is real: what it writes, its count of boots too, is there in the next run.
#
#   sector 0          boot sector: loads the rest
#   sectors 1 to 15   program
#   sector 16         boots: "cowvm demo boots", then a doubleword
#   0000:5000         variables     0000:7C00  stack, growing down; program, growing up
#
# Assembled by rustc (AT&T syntax, 16-bit code); labels count from the start, which is at 7C00h in the guest.
# They begin with .L, which keeps them out of the object file: Rust code stands there, too, and means other
# things by names such as write.

        .set    ORIGIN, 0x7c00
        .set    SECTORS, 16             # of the program
        .set    COUNTER, 16             # the sector after it

        .set    .Ldrive, 0x5000           # byte: BIOS drive number
        .set    .Lboots, 0x5004           # doubleword
        .set    .Lpacket, 0x5010          # 16 bytes: disk address packet
        .set    .Lmap, 0x5040             # 20 bytes: a line of the memory map
        .set    .Lline, 0x5100            # what is being typed
        .set    LINE_END, 0x5164        # 100 characters
        .set    .Lbuffer, 0x5200          # a sector

        .section .rodata.cowvm_demo, "a"
        .code16
        .globl  cowvm_demo_start
        .hidden cowvm_demo_start
cowvm_demo_start:
        .macro  address label, register
        mov     $(\label - cowvm_demo_start + ORIGIN), %\register
        .endm
        .macro  print text
        call    .Lsay
        .asciz  "\text"
        .endm

        ljmp    $0, $(.Lload - cowvm_demo_start + ORIGIN)
.Lload:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $ORIGIN, %sp
        sti
        cld
        mov     %dl, .Ldrive
        mov     $1, %eax
        mov     $(SECTORS - 1), %cx
        mov     $(ORIGIN + 512), %bx
        mov     $0x42, %dh
        call    .Ltransfer
        jnc     .Lprogram
        print   "The demo is not loaded: "
        call    .Lsay_error
1:      hlt
        jmp     1b

# Moves CX sectors from EAX on to or from 0000:BX; DH is 42h to read, 43h to write. Carry and AH as INT 13h.
.Ltransfer:
        mov     $.Lpacket, %si
        movw    $16, (%si)
        mov     %cx, 2(%si)
        mov     %bx, 4(%si)
        movw    $0, 6(%si)
        mov     %eax, 8(%si)
        movl    $0, 12(%si)
        mov     $0, %al                 # of a write: do not verify
        mov     %dh, %ah
        mov     .Ldrive, %dl
        int     $0x13
        ret

# Prints the text that follows the call.
.Lsay:
        pop     %si
1:      lodsb
        test    %al, %al
        jz      2f
        call    .Lput
        jmp     1b
2:      jmp     *%si

# Prints the character in AL.
.Lput:
        push    %ax
        push    %bx
        mov     $0x0e, %ah
        mov     $7, %bx
        int     $0x10
        pop     %bx
        pop     %ax
        ret

# Says which error AH is.
.Lsay_error:
        push    %ax
        print   "disk error "
        pop     %ax
        mov     %ah, %al
        call    .Lput_hex8
.Lnew_line:
        print   "\r\n"
        ret

# Print AL, AX, EAX in hexadecimal.
.Lput_hex32:
        rol     $16, %eax
        call    .Lput_hex16
        rol     $16, %eax
.Lput_hex16:
        xchg    %al, %ah
        call    .Lput_hex8
        xchg    %al, %ah
.Lput_hex8:
        rol     $4, %al
        call    1f
        rol     $4, %al
1:      push    %ax
        and     $0x0f, %al
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $('a' - '9' - 1), %al
2:      call    .Lput
        pop     %ax
        ret

        .org    cowvm_demo_start + 510
        .word   0xaa55

.Lprogram:
        call    .Lcount_boot
        print   "\r\nThis is cowvm's demo guest, a real-mode program on a disk of its own.\r\n"
        call    .Lsay_boots
        print   "\r\nhelp lists the commands.\r\n"
        print   "Ctrl-A C goes to the monitor and back, Ctrl-A X leaves.\r\n"
.Lprompt:
        print   "\r\ncow> "
        call    .Lread_line
        mov     $.Lline, %si
        call    .Lskip_spaces
        cmpb    $0, (%si)
        je      .Lprompt
        call    .Lfind_command
        jc      1f
        call    *%bx
        jmp     .Lprompt
1:      print   "There is no such command; help lists them.\r\n"
        jmp     .Lprompt

# Reads a line into `line`, ended by zero. Backspace takes a character back, Ctrl-U all of them.
.Lread_line:
        mov     $.Lline, %di
.Lnext_key:
        mov     $0, %ah
        int     $0x16
        cmp     $'\r', %al
        je      .Lend_line
        cmp     $'\b', %al
        je      .Lerase_one
        cmp     $('U' - '@'), %al
        je      .Lerase_all
        cmp     $' ', %al
        jb      .Lnext_key
        cmp     $'~', %al
        ja      .Lnext_key
        cmp     $LINE_END, %di
        jae     .Lnext_key
        stosb
        call    .Lput
        jmp     .Lnext_key
.Lerase_one:
        call    .Lerase
        jmp     .Lnext_key
.Lerase_all:
        call    .Lerase
        ja      .Lerase_all
        jmp     .Lnext_key
.Lend_line:
        movb    $0, (%di)
        jmp     .Lnew_line

# Takes the last character back, if there is one; "above" while more are left.
.Lerase:
        cmp     $.Lline, %di
        jbe     1f
        dec     %di
        print   "\b \b"
        cmp     $.Lline, %di
1:      ret

.Lskip_spaces:
        cmpb    $' ', (%si)
        jne     1f
        inc     %si
        jmp     .Lskip_spaces
1:      ret

# Finds the command at SI: its address in BX, its arguments at SI. Carry if there is none.
.Lfind_command:
        address .Lcommands, di
1:      cmpb    $0, (%di)
        je      4f
        push    %si
2:      mov     (%di), %al              # names end in zero, words in zero or space
        inc     %di
        test    %al, %al
        jz      3f
        cmp     (%si), %al
        jne     5f
        inc     %si
        jmp     2b
3:      cmpb    $' ', (%si)
        ja      6f
        add     $2, %sp
        mov     (%di), %bx
        call    .Lskip_spaces
        clc
        ret
5:      mov     (%di), %al              # another name: on to its end
        inc     %di
        test    %al, %al
        jnz     5b
6:      pop     %si
        add     $2, %di
        jmp     1b
4:      stc
        ret

        .macro  command name, handler
        .asciz  "\name"
        .word   \handler - cowvm_demo_start + ORIGIN
        .endm
.Lcommands:
        command "help", .Lhelp
        command "read", .Lread
        command "write", .Lwrite
        command "mem", .Lmem
        command "time", .Ltime
        command "boots", .Lsay_boots
        command "poweroff", .Lpoweroff
        command "reboot", .Lreboot
        .byte   0

.Lhelp:
        print   "help            this list\r\n"
        print   "read N          shows sector N of the disk (decimal, or hexadecimal with 0x)\r\n"
        print   "write N TEXT    writes TEXT and zeros to sector N\r\n"
        print   "mem             the memory map\r\n"
        print   "time            date and time\r\n"
        print   "boots           how many times this disk has booted\r\n"
        print   "poweroff        switches the machine off\r\n"
        print   "reboot          starts it again\r\n"
        ret

# read N
.Lread:
        call    .Lnumber
        jc      .Lbad_sector
        cmpb    $0, (%si)
        jne     .Lbad_sector
        mov     $0x42, %dh
        call    .Lone_sector
        jc      .Lsay_why
        mov     $.Lbuffer, %si
1:      call    .Ldump_line
        call    .Lskip_equal_lines
        cmp     $(.Lbuffer + 512), %si
        jb      1b
        ret

# Moves SI behind the lines that are equal to the one before it, and prints a star for them. The last line of
# the sector is always shown.
.Lskip_equal_lines:
        mov     %si, %dx
1:      cmp     $(.Lbuffer + 512 - 16), %si
        jae     2f
        push    %si
        mov     %si, %di
        sub     $16, %si
        mov     $16, %cx
        repe cmpsb
        pop     %si
        jne     2f
        add     $16, %si
        jmp     1b
2:      cmp     %dx, %si
        je      3f
        push    %si
        print   "*\r\n"
        pop     %si
3:      ret

# Prints the 16 bytes at SI and where they are in the sector, and moves SI behind them.
.Ldump_line:
        mov     %si, %ax
        sub     $.Lbuffer, %ax
        call    .Lput_hex16
        mov     $16, %cx
        push    %si
1:      mov     $' ', %al
        call    .Lput
        lodsb
        call    .Lput_hex8
        loop    1b
        pop     %si
        mov     $' ', %al
        call    .Lput
        call    .Lput
        mov     $16, %cx
2:      lodsb
        cmp     $' ', %al
        jb      3f
        cmp     $'~', %al
        jbe     4f
3:      mov     $'.', %al
4:      call    .Lput
        loop    2b
        push    %si
        call    .Lnew_line
        pop     %si
        ret

# write N TEXT
.Lwrite:
        call    .Lnumber
        jc      .Lbad_sector
        cmpb    $0, (%si)
        je      .Lno_text
        cmp     $COUNTER, %eax
        jbe     .Lown_sector
        push    %eax
        call    .Lclear_buffer
        mov     $.Lbuffer, %di
1:      lodsb
        stosb
        test    %al, %al
        jnz     1b
        pop     %eax
        mov     $0x43, %dh
        call    .Lone_sector
        jc      .Lsay_why
        print   "Written.\r\n"
        ret
.Lno_text:
        print   "What shall be written? write N TEXT\r\n"
        ret
.Lown_sector:
        print   "Sectors 0 to 16 hold the demo itself; take another.\r\n"
        ret
.Lbad_sector:
        print   "Which sector? A number, decimal, or hexadecimal with 0x.\r\n"
        ret

# Says why INT 13h has failed with error AH.
.Lsay_why:
        cmp     $3, %ah
        je      1f
        cmp     $4, %ah
        jne     .Lsay_error
        print   "there is no such sector on the disk.\r\n"
        ret
1:      print   "the disk is read-only.\r\n"
        ret

# Moves sector EAX to or from the buffer; DH as in `transfer`.
.Lone_sector:
        mov     $1, %cx
        mov     $.Lbuffer, %bx
        jmp     .Ltransfer

.Lclear_buffer:
        mov     $.Lbuffer, %di
        mov     $256, %cx
        xor     %ax, %ax
        rep stosw
        ret

# The number at SI in EAX, SI at the next argument. Carry if there is none, or it has more than 32 bits.
.Lnumber:
        xor     %eax, %eax
        mov     $10, %ebx
        cmpw    $0x7830, (%si)          # 0x
        jne     1f
        add     $2, %si
        mov     $16, %ebx
1:      call    .Ldigit
        jc      4f
2:      mul     %ebx
        test    %edx, %edx
        jnz     4f
        add     %ecx, %eax
        jc      4f
        call    .Ldigit
        jnc     2b
        cmpb    $' ', (%si)
        ja      4f
        call    .Lskip_spaces
        clc
        ret
4:      stc
        ret

# The digit at SI, to base EBX, in ECX; SI behind it. Carry if there is none.
.Ldigit:
        movzbl  (%si), %ecx
        sub     $'0', %cl
        cmp     $9, %cl
        jbe     1f
        or      $0x20, %cl              # letters, less '0': 'A' is 11h, 'a' is 31h
        sub     $('a' - '0'), %cl
        cmp     $5, %cl
        ja      2f
        add     $10, %cl
1:      cmp     %bl, %cl
        jae     2f
        inc     %si
        clc
        ret
2:      stc
        ret

# mem: INT 15h E820, line by line.
.Lmem:
        xor     %ebx, %ebx
1:      mov     $0xe820, %eax
        mov     $0x534d4150, %edx
        mov     $20, %ecx
        mov     $.Lmap, %di
        int     $0x15
        jc      2f
        push    %ebx
        call    .Lmem_line
        pop     %ebx
        test    %ebx, %ebx
        jnz     1b
2:      ret

.Lmem_line:
        mov     .Lmap + 4, %eax
        call    .Lput_hex32
        mov     .Lmap, %eax
        call    .Lput_hex32
        mov     $'-', %al
        call    .Lput
        mov     .Lmap, %ebx               # the last address: start + length - 1
        mov     .Lmap + 4, %edx
        add     .Lmap + 8, %ebx
        adc     .Lmap + 12, %edx
        sub     $1, %ebx
        sbb     $0, %edx
        mov     %edx, %eax
        call    .Lput_hex32
        mov     %ebx, %eax
        call    .Lput_hex32
        cmpw    $1, .Lmap + 16
        je      1f
        print   "  reserved\r\n"
        ret
1:      print   "  memory\r\n"
        ret

# time: BCD in CH (century), CL, DH, DL, then in CH, CL, DH.
.Ltime:
        mov     $4, %ah
        int     $0x1a
        mov     %cx, %ax
        call    .Lput_hex16
        mov     $'-', %al
        call    .Lput
        mov     %dh, %al
        call    .Lput_hex8
        mov     $'-', %al
        call    .Lput
        mov     %dl, %al
        call    .Lput_hex8
        mov     $' ', %al
        call    .Lput
        mov     $2, %ah
        int     $0x1a
        mov     %ch, %al
        call    .Lput_hex8
        mov     $':', %al
        call    .Lput
        mov     %cl, %al
        call    .Lput_hex8
        mov     $':', %al
        call    .Lput
        mov     %dh, %al
        call    .Lput_hex8
        print   " UTC\r\n"
        ret

.Lsay_boots:
        print   "This is boot "
        mov     .Lboots, %eax
        call    .Lput_decimal
        print   " of this disk.\r\n"
        ret

.Lput_decimal:
        mov     $10, %ebx
        xor     %cx, %cx
1:      xor     %edx, %edx
        div     %ebx
        push    %dx
        inc     %cx
        test    %eax, %eax
        jnz     1b
2:      pop     %ax
        add     $'0', %al
        call    .Lput
        loop    2b
        ret

# Adds one to the count on the disk. A sector without the signature starts at zero.
.Lcount_boot:
        mov     $COUNTER, %eax
        mov     $0x42, %dh
        call    .Lone_sector
        jc      3f
        address .Lsignature, si
        mov     $.Lbuffer, %di
        mov     $16, %cx
        repe cmpsb
        je      1f
        call    .Lclear_buffer
        address .Lsignature, si
        mov     $.Lbuffer, %di
        mov     $16, %cx
        rep movsb
1:      incl    .Lbuffer + 16
        mov     .Lbuffer + 16, %eax
        mov     %eax, .Lboots
        mov     $COUNTER, %eax
        mov     $0x43, %dh
        call    .Lone_sector
        jnc     2f
3:      print   "\r\nThis boot is not counted: "
        call    .Lsay_why
2:      ret

.Lsignature:
        .ascii  "cowvm demo boots"

# Resets the drive, so that all that was written is durable, then asks APM to switch off.
.Lpoweroff:
        call    .Lsettle
        mov     $0x5307, %ax
        mov     $1, %bx
        mov     $3, %cx
        int     $0x15
        print   "The machine does not switch off; Ctrl-A X leaves.\r\n"
        ret

# The reset line of the keyboard controller, and where it does nothing the reset vector.
.Lreboot:
        call    .Lsettle
        mov     $0xfe, %al
        out     %al, $0x64
        ljmp    $0xf000, $0xfff0

.Lsettle:
        mov     $0, %ah
        mov     .Ldrive, %dl
        int     $0x13
        ret

        .org    cowvm_demo_start + SECTORS * 512
        .globl  cowvm_demo_end
        .hidden cowvm_demo_end
cowvm_demo_end:
        .code64
        .text
