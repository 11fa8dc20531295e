//! Media that are put in and taken out, as people, programs and the guest see it. The guest looks at the virtio
//! registers of the disk in the highest slot by the window in its configuration space, which ports reach.
//!
//! ```text
//!   's'   answer "SSSSSSSS GG II;": sectors, generation of the configuration, interrupt status
//!   'r'   read sector 1 of the second disk by INT 13h; answer its first byte, or '!' for an error
//!   'w'   fill that sector with 'w'; answer '.', or '!'
//! ```

use crate::machine::{Machine, Place, cowvm, tool};
use crate::running::has_kvm;
use serde_json::{Value, json};
use std::fs;

core::arch::global_asm!(
    ".section .rodata.media_guest, \"a\"",
    ".code16",
    ".global media_guest_start",
    "media_guest_start:",
    "xor ax, ax; mov ds, ax; mov es, ax; cld",
    // The highest slot with a virtio device; 9000h keeps its address.
    "mov ebx, 0x8000f800",
    "10: mov [0x9000], ebx",
    "mov al, 0; call 80f",
    "cmp ax, 0x1af4; je 11f",
    "sub ebx, 0x800; jmp 10b",
    // Its capability that is a window on the registers; 9004h keeps the offset.
    "11: mov al, 0x34; call 80f",
    "12: mov cl, al; call 80f",
    "mov ebx, eax; shr ebx, 24",
    "cmp al, 9; jne 13f",
    "cmp bl, 5; je 14f",
    "13: mov al, ah; jmp 12b",
    "14: mov [0x9004], cl",
    // Version 1 alone, and ready.
    "mov ebx, 0x14; mov esi, 3; mov ecx, 1; call 84f",
    "mov ebx, 0x08; mov esi, 1; mov ecx, 4; call 84f",
    "mov ebx, 0x0c; mov esi, 1; call 84f",
    "mov ebx, 0x14; mov esi, 0x0b; mov ecx, 1; call 84f",
    "mov ebx, 0x14; mov esi, 0x0f; call 84f",
    "mov al, 0x3e; call 90f",
    "20: mov ah, 0; int 0x16",
    "cmp al, 0x72; je 21f",
    "cmp al, 0x77; je 22f",
    "mov ebx, 0x2000; mov ecx, 4; call 83f; mov edi, eax; mov cx, 8; call 91f",
    "mov ebx, 0x15; call 30f",
    "mov ebx, 0x1000; call 30f",
    "mov al, 0x3b; call 90f; jmp 20b",
    "21: mov ax, 0x0201; call 31f",
    "mov al, 0x21; jc 29f",
    "mov al, [0x8000]; jmp 29f",
    "22: mov di, 0x8000; mov cx, 512; rep stosb",
    "mov ax, 0x0301; call 31f",
    "mov al, 0x21; jc 29f",
    "mov al, 0x2e",
    "29: call 90f; jmp 20b",
    // Prints a space and the byte register at ebx.
    "30: mov al, 0x20; push ebx; call 90f; pop ebx",
    "mov ecx, 1; call 83f; mov edi, eax; ror edi, 8; mov cx, 2; jmp 91f",
    "31: mov bx, 0x8000; mov cx, 2; mov dx, 0x81; int 0x13; ret",
    // Configuration space: register al; value eax, or edi to be written.
    "79: movzx eax, al; or eax, [0x9000]; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; ret",
    "80: call 79b; in eax, dx; ret",
    "81: call 79b; mov eax, edi; out dx, eax; ret",
    // The window at ebx, ecx bytes long.
    "82: mov al, [0x9004]; add al, 8; mov edi, ebx; call 81b",
    "mov al, [0x9004]; add al, 12; mov edi, ecx; call 81b",
    "mov al, [0x9004]; add al, 16; ret",
    "83: call 82b; jmp 80b",
    "84: call 82b; mov edi, esi; jmp 81b",
    "90: mov ah, 0x0e; mov bh, 0; int 0x10; ret",
    // The cx digits at the top of edi.
    "91: rol edi, 4; mov ax, di; and al, 0x0f; add al, 0x30",
    "cmp al, 0x39; jbe 92f",
    "add al, 39",
    "92: call 90b; dec cx; jnz 91b",
    "ret",
    ".global media_guest_end",
    "media_guest_end:",
    ".code64",
    ".text",
);

fn guest() -> &'static [u8] {
    unsafe extern "C" {
        static media_guest_start: u8;
        static media_guest_end: u8;
    }
    let (start, end) = (&raw const media_guest_start, &raw const media_guest_end);
    // SAFETY: both labels are in the block of constants above, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// A folder with the guest's disk, and media of 1 and 2 MiB full of `A` and `B`.
struct Scene {
    place: Place,
    boot: String,
    a: String,
    b: String,
}

impl Scene {
    fn new() -> Scene {
        assert!(guest().len() <= 510, "{} bytes of boot sector", guest().len());
        let place = Place::new();
        let boot = place.boot_disk("boot.raw", guest());
        let medium = |name: &str, byte, mib: usize| {
            fs::write(place.path(name), vec![byte; mib << 20]).unwrap();
            place.text(name)
        };
        let (a, b) = (medium("a.iso", b'A', 1), medium("b.iso", b'B', 2));
        Scene { place, boot, a, b }
    }

    fn start(&self, arguments: &[&str]) -> Machine {
        let boot = format!("file={},format=raw,readonly=on,id=hda", self.boot);
        Machine::start(&self.place, &[&["-drive", &boot], arguments].concat())
    }
}

fn moved(device: &str, open: bool) -> Value {
    json!({"device": device, "tray-open": open, "id": device})
}

#[test]
fn the_guest_sees_a_disc_go_and_another_one_come() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new();
    let mut machine = scene.start(&["-cdrom", &scene.a]);
    let (mut hmp, mut qmp) = (machine.hmp(), machine.qmp());
    machine.key('s', "00000800 00 00;");
    machine.key('r', "A");
    let closed = "    Removable device: not locked, tray closed\n    Cache mode:       writeback\n";
    let shown = format!("ide1-cd0 (#ide1-cd0): {} (raw, read-only)\n{closed}", scene.a);
    assert_eq!(hmp.ask("info block ide1-cd0"), shown);

    assert_eq!(hmp.ask("eject ide1-cd0"), "");
    assert_eq!(qmp.event("DEVICE_TRAY_MOVED"), moved("ide1-cd0", true));
    machine.key('s', "00000000 01 02;");
    machine.key('r', "!");
    let shown = "ide1-cd0: [not inserted]\n    Removable device: not locked, tray open\n";
    assert_eq!(hmp.ask("info block ide1-cd0"), shown);
    let device = &qmp.execute("query-block", json!({}))[1];
    assert_eq!([&device["removable"], &device["tray_open"], &device["locked"]], [true, true, false]);
    assert!(device.get("inserted").is_none());

    assert_eq!(hmp.ask(&format!("change ide1-cd0 {} raw", scene.b)), "");
    assert_eq!(qmp.event("DEVICE_TRAY_MOVED"), moved("ide1-cd0", false));
    machine.key('s', "00001000 02 02;");
    machine.key('r', "B");
    let device = &qmp.execute("query-block", json!({}))[1];
    assert_eq!((&device["tray_open"], &device["inserted"]["file"]), (&json!(false), &json!(scene.b)));

    // Another disc of the same size is another disc.
    fs::copy(&scene.b, scene.place.path("c.iso")).unwrap();
    let new = json!({"id": "ide1-cd0", "filename": scene.place.text("c.iso"), "format": "raw"});
    qmp.execute("blockdev-change-medium", new);
    assert_eq!(qmp.event("DEVICE_TRAY_MOVED"), moved("ide1-cd0", true));
    assert_eq!(qmp.event("DEVICE_TRAY_MOVED"), moved("ide1-cd0", false));
    machine.key('s', "00001000 03 02;");
    machine.key('w', "!");
    machine.quit();
}

#[test]
fn a_drive_may_be_empty_from_the_start() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new();
    let mut machine = scene.start(&["-drive", "media=cdrom,id=cd0"]);
    let mut hmp = machine.hmp();
    machine.key('s', "00000000 00 00;");
    machine.key('r', "!");
    let shown = "cd0: [not inserted]\n    Removable device: not locked, tray closed\n";
    assert_eq!(hmp.ask("info block cd0"), shown);
    assert_eq!(hmp.ask("stop"), "");
    assert_eq!(hmp.ask("cont"), "");
    assert_eq!(hmp.ask(&format!("change cd0 {}", scene.a)), "");
    machine.key('s', "00000800 01 02;");
    machine.key('r', "A");
    machine.quit();
}

#[test]
fn a_floppy_keeps_what_was_written_and_its_mode_is_chosen_with_the_medium() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new();
    let floppy = format!("file={},format=raw,media=floppy,id=floppy0", scene.a);
    let mut machine = scene.start(&["-drive", &floppy]);
    let (mut hmp, mut qmp) = (machine.hmp(), machine.qmp());
    machine.key('w', ".");
    qmp.execute("eject", json!({"device": "floppy0"}));
    assert_eq!(fs::read(&scene.a).unwrap()[510..1026], [&b"AA"[..], &[b'w'; 512], b"AA"].concat());
    assert!(qmp.execute("query-block", json!({}))[1].get("tray_open").is_none());
    for (mode, answer) in
        [("raw read-only", "!"), ("raw", "!"), ("raw retain", "!"), ("raw read-write", "."), ("raw", ".")]
    {
        assert_eq!(hmp.ask(&format!("change floppy0 {} {mode}", scene.b)), "");
        machine.key('w', answer);
        let shown = hmp.ask("info block floppy0");
        assert_eq!(shown.contains("read-only"), answer == "!", "{mode}: {shown}");
    }
    machine.quit();
}

#[test]
fn a_change_that_fails_leaves_the_medium_in() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new();
    let mut machine = scene.start(&["-cdrom", &scene.a]);
    let (mut hmp, mut qmp) = (machine.hmp(), machine.qmp());
    for (line, said) in [
        (
            "change ide1-cd0 /nonexistent/x",
            "Error: Could not open '/nonexistent/x': No such file or directory",
        ),
        ("change ide1-cd0 AAA nofmt", "Unknown driver 'nofmt'"),
        ("change ide1-cd0 AAA qcow2", "Image is not in qcow2 format"),
        ("change ide1-cd0 AAA raw blah", "Error: invalid parameter value: blah\n"),
        ("change ide1-cd0 AAA raw read-write", "Device 'ide1-cd0' is a CD-ROM drive"),
        ("change nosuch AAA", "Error: Device 'nosuch' not found\n"),
        ("eject nosuch", "Error: Device 'nosuch' not found\n"),
        ("change hda AAA", "Error: Device 'hda' is not removable\n"),
        ("eject -f hda", "Error: Device 'hda' is not removable\n"),
    ] {
        let answer = hmp.ask(&line.replace("AAA", &scene.b));
        assert!(answer.contains(said), "{line}: {answer}");
    }
    let generic = |said: &str| ("GenericError".to_owned(), said.to_owned());
    assert_eq!(qmp.refused("eject", json!({})), generic("Need exactly one of 'device' and 'id'"));
    let bad = json!({"device": "ide1-cd0", "filename": scene.b, "read-only-mode": "bad"});
    let said = "Parameter 'read-only-mode' does not accept value 'bad'";
    assert_eq!(qmp.refused("blockdev-change-medium", bad), generic(said));
    let (class, _) = qmp.refused("eject", json!({"id": "nosuch"}));
    assert_eq!(class, "DeviceNotFound");
    machine.key('s', "00000800 00 00;");
    machine.key('r', "A");
    machine.quit();
}

#[test]
fn a_vm_snapshot_is_loaded_with_the_medium_that_it_was_taken_with_alone() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new();
    let disk = scene.place.text("boot.qcow2");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &scene.boot, &disk]);
    let mut machine = Machine::start(&scene.place, &["-hda", &disk, "-cdrom", &scene.a]);
    let mut hmp = machine.hmp();
    assert_eq!(hmp.ask("savevm one"), "");
    assert_eq!(hmp.ask("eject ide1-cd0"), "");
    let refused = hmp.ask("loadvm one");
    assert!(refused.contains(&format!("'{}' (1048576 bytes, read-only) in ide1-cd0", scene.a)), "{refused}");
    assert!(refused.contains(&format!("change ide1-cd0 {}", scene.a)), "{refused}");
    machine.key('r', "!");
    assert_eq!(hmp.ask(&format!("change ide1-cd0 {}", scene.b)), "");
    assert!(hmp.ask("loadvm one").contains(&scene.b));
    assert_eq!(hmp.ask(&format!("change ide1-cd0 {}", scene.a)), "");
    assert_eq!(hmp.ask("loadvm one"), "");
    machine.key('s', "00000800 00 00;");
    machine.key('r', "A");
    machine.quit();
}

#[test]
fn in_snapshot_mode_a_medium_stays_as_it_is_and_commit_writes_it() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new();
    let mut machine = scene.start(&["-snapshot", "-fda", &scene.a]);
    let mut hmp = machine.hmp();
    machine.key('w', ".");
    assert_eq!(hmp.ask(&format!("change floppy0 {} raw", scene.b)), "");
    machine.key('r', "B");
    machine.key('w', ".");
    machine.key('r', "w");
    assert!(fs::read(&scene.b).unwrap().iter().all(|byte| *byte == b'B'));
    assert_eq!(hmp.ask("commit floppy0"), "");
    assert_eq!(fs::read(&scene.b).unwrap()[512], b'w');
    assert_eq!(hmp.ask("eject floppy0"), "");
    machine.quit();
    assert!(fs::read(&scene.a).unwrap().iter().all(|byte| *byte == b'A'));
}

#[test]
fn drives_that_make_no_sense_are_refused() {
    let scene = Scene::new();
    for (drive, said) in [
        ("media=tape,file=AAA", "'tape' invalid media"),
        ("media=cdrom,file=AAA,readonly=off", "media in a CD-ROM drive are read-only"),
        ("media=disk", "file= is missing"),
    ] {
        let output = cowvm(&scene.place).args(["-drive", &drive.replace("AAA", &scene.a)]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!has_kvm() || text.contains(said), "{text}");
    }
}
