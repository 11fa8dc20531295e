//! Boot sectors of our own on KVM, and calls with made-up registers without it.

use crate::vm::boot::harness::{Ended, Machine, MemoryDisk, boot_sector};

boot_sector!(
    HELLO,
    r#"
        mov     $(text - test_HELLO + 0x7c00), %si
    1:  lodsb
        test    %al, %al
        jz      2f
        mov     $0x0e, %ah
        int     $0x10
        jmp     1b
    2:  mov     $0x5307, %ax
        mov     $1, %bx
        mov     $3, %cx
        int     $0x15
    text:
        .asciz  "hello\r\n"
"#
);

#[test]
fn a_boot_sector_prints_and_switches_off() {
    let mut machine = Machine::new(vec![MemoryDisk::new(HELLO())]);
    assert_eq!(machine.run(), Ended::PowerOff);
    assert_eq!(machine.output(), "hello\r\n");
}
