//! Guests of a few bytes, in boot sectors of raw disks, and the program that runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

// The boot sectors. Each starts at 0:7c00 with DL the drive.
core::arch::global_asm!(
    ".section .rodata.vm_run, \"a\"",
    ".code16",
    // Counts its boots in the clock's memory, prints the count as a letter, and resets the machine in another
    // way each time; the third boot switches it off by ACPI.
    ".global vm_run_resets",
    "vm_run_resets:",
    "xor ax, ax; mov ds, ax",
    "mov al, 0x40; out 0x70, al; in al, 0x71; inc al; mov bl, al",
    "out 0x71, al",
    "mov ah, 0x0e; add al, 0x40; mov bh, 0; int 0x10",
    "mov al, 0x40; out 0x70, al; in al, 0x71",
    "cmp al, 1; je 11f",
    "cmp al, 2; je 12f",
    "mov dx, 0x604; mov ax, 0x3400; out dx, ax",
    "10: hlt; jmp 10b",
    "11: mov al, 0xfe; out 0x64, al; jmp 10b",
    "12: mov dx, 0x60c; mov al, 1; out dx, al; jmp 10b",
    // Echoes what COM1 receives, plus one, by polling.
    ".global vm_run_echo",
    "vm_run_echo:",
    "20: mov dx, 0x3fd; in al, dx; test al, 1; jz 20b",
    "mov dx, 0x3f8; in al, dx; inc al; out dx, al; jmp 20b",
    // Says that it runs and waits.
    ".global vm_run_wait",
    "vm_run_wait:",
    "mov ax, 0x0e21; mov bh, 0; int 0x10",
    "30: sti; hlt; jmp 30b",
    // Counts keys in memory and in a sector of each of two disks, and prints all three as letters.
    ".global vm_run_count",
    "vm_run_count:",
    "xor ax, ax; mov ds, ax; mov es, ax; mov byte ptr [0x600], al",
    "40: mov ah, 0; int 0x16; inc byte ptr [0x600]; mov dl, 0x80",
    "41: mov ax, 0x0201; mov cx, 2; mov dh, 0; mov bx, 0x8000; push dx; int 0x13; pop dx",
    "inc byte ptr [0x8000]",
    "mov ax, 0x0301; mov cx, 2; mov dh, 0; mov bx, 0x8000; push dx; int 0x13; pop dx",
    "mov al, [0x8000]; add al, 0x60; mov ah, 0x0e; mov bh, 0; push dx; int 0x10; pop dx",
    "inc dl; cmp dl, 0x82; jne 41b",
    "mov al, [0x600]; add al, 0x40; mov ah, 0x0e; mov bh, 0; int 0x10; jmp 40b",
    ".global vm_run_end",
    "vm_run_end:",
    ".code64",
    ".text",
);

unsafe extern "C" {
    static vm_run_resets: u8;
    static vm_run_echo: u8;
    static vm_run_wait: u8;
    static vm_run_count: u8;
    static vm_run_end: u8;
}

/// The bytes from one label to another.
fn code(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both labels are in the block of constants above, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// To be started without anything to type to it.
pub(crate) fn cowvm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowvm"));
    command.arg("run").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn resets() -> &'static [u8] {
    code(&raw const vm_run_resets, &raw const vm_run_echo)
}

pub(crate) fn echo() -> &'static [u8] {
    code(&raw const vm_run_echo, &raw const vm_run_wait)
}

pub(crate) fn wait() -> &'static [u8] {
    code(&raw const vm_run_wait, &raw const vm_run_count)
}

pub(crate) fn count() -> &'static [u8] {
    code(&raw const vm_run_count, &raw const vm_run_end)
}

/// A folder with a raw disk that boots `code`.
pub(crate) fn disk(code: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let mut bytes = code.to_vec();
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xaa]);
    bytes.resize(64 << 10, 0);
    let path = folder.path().join("disk.raw");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub(crate) fn drive(path: &Path) -> String {
    format!("file={},format=raw", path.display())
}
