//! Boot sectors of our own on KVM, and calls with made-up registers without it.

use super::*;
use crate::block;
use crate::vm::boot::harness::{Ended, Machine, MemoryDisk, boot_sector};
use crate::vm::layout::Layout;
use crate::vm::memory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress};

boot_sector!(
    print,
    r#"
        call    1f
        .asciz  "hello\r\n"
    1:  pop     %si
    2:  lodsb
        mov     $0x0e, %ah
        int     $0x10
        cmpb    $0, (%si)
        jne     2b
"#
);

#[test]
fn a_boot_sector_prints_and_switches_off() {
    let mut machine = Machine::new(vec![MemoryDisk::new(print())]);
    assert_eq!(machine.run(), Ended::PowerOff);
    assert_eq!(machine.output(), "hello\r\n");
}

#[test]
fn without_a_boot_sector_the_console_says_why() {
    let stops = |disks: Vec<_>, why: &str| {
        assert_eq!(Machine::new(disks).run_until(|output| output == why), Ended::Reached);
    };
    stops(vec![], "there is no disk to boot from\r\n");
    stops(vec![MemoryDisk::new([1; 511])], "hda: no boot sector: the disk has 511 bytes\r\n");
    stops(vec![MemoryDisk::new([0xee; 512])], "hda: no boot sector: sector 0 ends with ee ee, not 55 aa\r\n");
}

boot_sector!(
    read_sectors,
    r#"
        mov     $0x0203, %ax            # 3 sectors from 0/0/2 to 0:8000
        mov     $2, %cx
        mov     $0, %dh
        mov     $0x8000, %bx
        int     $0x13
        jc      9f
        mov     $0x0202, %ax            # 2 sectors from 0/1/1 to 0:fe00, past the end of the segment
        mov     $1, %cx
        mov     $1, %dh
        mov     $0xfe00, %bx
        int     $0x13
        jc      9f
        call    1f                      # 4 sectors from 100 to 3000:0010
        .word   16, 4, 0x10, 0x3000
        .quad   100
    1:  pop     %si
        mov     $0x42, %ah
        int     $0x13
        jc      9f
        mov     $0x0201, %ax            # one that is not there
        mov     $0xffff, %cx
        int     $0x13
        mov     %ah, 0x9000
        setc    0x9001
        mov     $0x01, %ah              # its status again
        int     $0x13
        mov     %ah, 0x9002
    9:
"#
);

#[test]
fn both_ways_to_read_give_the_disks_sectors() {
    let disk = MemoryDisk::patterned(&read_sectors(), 200);
    let mut machine = Machine::new(vec![disk.clone()]);
    assert_eq!(machine.run(), Ended::PowerOff);
    let bytes = disk.bytes.lock().unwrap();
    for (address, lba, sectors) in [(0x8000, 1, 3), (0xfe00, 63, 2), (0x30010, 100, 4)] {
        assert_eq!(machine.memory(address, sectors * 512), bytes[lba * 512..][..sectors * 512], "{lba}");
    }
    assert_eq!(machine.memory(0x9000, 3), [4, 1, 4]);
}

boot_sector!(
    write_sectors,
    r#"
        mov     $0x0302, %ax            # 2 sectors from 0:7c00 to 0/0/10
        mov     $10, %cx
        mov     $0, %dh
        mov     $0x7c00, %bx
        int     $0x13
        mov     %ah, 0x9000
        call    1f                      # 1 sector from 0:7c00 to 50
        .word   16, 1, 0x7c00, 0
        .quad   50
    1:  pop     %si
        mov     $0x4300, %ax
        int     $0x13
        mov     %ah, 0x9001
"#
);

#[test]
fn both_ways_to_write_change_only_the_named_sectors() {
    let disk = MemoryDisk::patterned(&write_sectors(), 60);
    let before = disk.bytes.lock().unwrap().clone();
    let mut machine = Machine::new(vec![disk.clone()]);
    assert_eq!(machine.run(), Ended::PowerOff);
    assert_eq!(machine.memory(0x9000, 2), [0, 0]);
    let mut expect = before;
    expect[9 * 512..11 * 512].copy_from_slice(&machine.memory(0x7c00, 1024));
    expect[50 * 512..51 * 512].copy_from_slice(&write_sectors());
    assert!(*disk.bytes.lock().unwrap() == expect);
}

#[test]
fn a_read_only_disk_refuses_writes_with_error_3() {
    let before = MemoryDisk::patterned(&write_sectors(), 60).bytes.lock().unwrap().clone();
    let disk = Arc::new(MemoryDisk { bytes: before.clone().into(), read_only: true });
    let mut machine = Machine::new(vec![disk.clone()]);
    assert_eq!(machine.run(), Ended::PowerOff);
    assert_eq!(machine.memory(0x9000, 2), [3, 3]);
    assert!(*disk.bytes.lock().unwrap() == before);
}

boot_sector!(
    memory_map,
    r#"
        xor     %ebx, %ebx
        mov     $0x8000, %di
    1:  mov     $0xe820, %eax
        mov     $0x534d4150, %edx
        mov     $20, %ecx
        int     $0x15
        jc      2f
        add     $20, %di
        test    %ebx, %ebx
        jnz     1b
    2:  mov     %di, 0x9000
        mov     $0xe801, %ax
        int     $0x15
        mov     %cx, 0x9002
        mov     %dx, 0x9004
        mov     $0x88, %ah
        int     $0x15
        mov     %ax, 0x9006
        int     $0x12
        mov     %ax, 0x9008
"#
);

#[test]
fn the_memory_map_is_the_layouts() {
    let mut machine = Machine::new(vec![MemoryDisk::new(memory_map())]);
    assert_eq!(machine.run(), Ended::PowerOff);
    let words: Vec<u16> =
        machine.memory(0x9000, 10).chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect();
    let mut expect = Vec::new();
    for line in machine.layout.e820() {
        expect.extend(line.start.to_le_bytes());
        expect.extend(line.len.to_le_bytes());
        expect.extend((line.kind as u32).to_le_bytes());
    }
    assert_eq!(machine.memory(0x8000, usize::from(words[0] - 0x8000)), expect);
    // 64 MiB: 15 MiB in KiB below 16 MiB, 48 MiB in units of 64 KiB above; 63 MiB; 639 KiB.
    assert_eq!(words[1..], [15 << 10, 48 << 4, 63 << 10, 639]);
}

boot_sector!(
    keyboard,
    r#"
        mov     $0x11, %ah              # no key yet
        int     $0x16
        setz    0x9000
        mov     $0x0e3f, %ax            # "?"
        int     $0x10
        mov     $0x00, %ah
        int     $0x16
        mov     %ax, 0x9002
        mov     $0x10, %ah
        int     $0x16
        mov     %ax, 0x9004
        mov     $0x01, %ah              # the next one stays
        int     $0x16
        setz    0x9001
        mov     %ax, 0x9006
        mov     $0x00, %ah
        int     $0x16
        mov     %ax, 0x9008
"#
);

#[test]
fn keys_are_waited_for_and_come_in_order() {
    let mut machine = Machine::new(vec![MemoryDisk::new(keyboard())]);
    assert_eq!(machine.run_until(|output| output == "?"), Ended::Reached);
    machine.console.push_input(b"a\x1b[A\r");
    assert_eq!(machine.run(), Ended::PowerOff);
    assert_eq!(machine.memory(0x9000, 10), [1, 0, 0x61, 0x1e, 0x00, 0x48, 0x0d, 0x1c, 0x0d, 0x1c]);
}

boot_sector!(
    wait_for_ticks,
    r#"
        mov     $0, %ah                 # three ticks
        int     $0x1a
        mov     %dx, %di
    1:  mov     $0, %ah
        int     $0x1a
        sub     %di, %dx
        cmp     $3, %dx
        jb      1b
        mov     $0x86, %ah              # 30 ms
        mov     $0, %cx
        mov     $30000, %dx
        int     $0x15
        setc    0x9000
"#
);

#[test]
fn the_timer_ticks_and_delays_end() {
    let mut machine = Machine::new(vec![MemoryDisk::new(wait_for_ticks())]);
    assert_eq!(machine.run(), Ended::PowerOff);
    assert_eq!(machine.memory(0x9000, 1), [0]);
}

/// A BIOS without a vCPU, after power on.
struct Bench {
    bios: Bios,
    memory: Arc<GuestMemory>,
    console: Arc<Console>,
}

const BENCH_MEMORY: u64 = 2 << 20;

impl Bench {
    fn new(disks: Vec<Arc<dyn Disk>>) -> Bench {
        let layout = Layout::new(BENCH_MEMORY, 36).unwrap();
        let memory = memory::allocate(&layout).unwrap();
        let console = Console::new(std::io::sink()).unwrap();
        let mut bios = Bios::new(memory.clone(), layout.e820(), disks, console.clone());
        bios.load().unwrap();
        bios.power_on();
        Bench { bios, memory, console }
    }

    fn call(&mut self, interrupt: u8, mut frame: Frame) -> Frame {
        let _ = self.bios.serve(Slot::Interrupt(interrupt), &mut frame);
        frame
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; BENCH_MEMORY as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }
}

fn frame(ax: u16, bx: u16, cx: u16, dx: u16) -> Frame {
    let mut frame = Frame::default();
    frame.set_ax(ax);
    frame.set_bx(bx);
    frame.set_cx(cx);
    frame.set_dx(dx);
    frame
}

/// A disk of which only the size is ever asked.
struct Sized(u64);

impl Disk for Sized {
    fn id(&self) -> &str {
        "hda"
    }
    fn size(&self) -> u64 {
        self.0
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read(&self, _offset: u64, len: usize) -> block::Result<Vec<u8>> {
        Ok(vec![0; len])
    }
    fn write(&self, _offset: u64, _bytes: Vec<u8>) -> block::Result<()> {
        Err(block::Error::new(block::Kind::ReadOnly, "read-only"))
    }
    fn flush(&self) -> block::Result<()> {
        Ok(())
    }
}

#[test]
fn the_last_sector_of_the_geometry_is_on_the_disk_and_can_be_read() {
    for sectors in [1008, 2880, 32768, 1_032_192, 1_032_193, 16_515_072, 1 << 24, 1 << 32, 1 << 50] {
        let mut bench = Bench::new(vec![Arc::new(Sized(sectors * 512))]);
        let shown = bench.call(0x13, frame(0x0800, 0, 0, 0x80));
        assert_eq!((shown.carry_and_zero().0, shown.ah(), shown.dl()), (false, 0, 1));
        let cylinders = u64::from(shown.cx() >> 8 | (shown.cx() & 0xc0) << 2) + 1;
        let (heads, per_track) = (u64::from(shown.dh()) + 1, u64::from(shown.cx() & 0x3f));
        assert!(cylinders * heads * per_track <= sectors, "{sectors}");
        assert!(cylinders == 1024 || (cylinders + 1) * heads * per_track > sectors, "{sectors}");
        let last = bench.call(0x13, frame(0x0401, 0, shown.cx(), u16::from(shown.dh()) << 8 | 0x80));
        assert!(!last.carry_and_zero().0, "{sectors}");
    }
}

#[test]
fn the_extended_parameters_give_size_and_geometry() {
    let mut bench = Bench::new(vec![Arc::new(Sized(1 << 40))]);
    for (room, len) in [(25u16, 0usize), (26, 26), (29, 26), (30, 30), (0x42, 30)] {
        bench.memory.write_slice(&[0xcc; 40], GuestAddress(0x8000)).unwrap();
        bench.memory.write_obj(room, GuestAddress(0x8000)).unwrap();
        let mut request = frame(0x4800, 0, 0, 0x80);
        request.regs.rsi = 0x8000;
        let done = bench.call(0x13, request);
        assert_eq!(done.carry_and_zero().0, len == 0);
        let table = &bench.contents()[0x8000..0x8028];
        if len > 0 {
            assert_eq!(table[..2], (len as u16).to_le_bytes());
            assert_eq!(table[16..24], (1u64 << 31).to_le_bytes());
            assert_eq!(table[24..26], 512u16.to_le_bytes());
        }
        assert!(table[len.max(2)..].iter().all(|&byte| byte == 0xcc));
    }
}

#[test]
fn drives_that_do_not_exist_and_functions_that_do_not_exist_are_refused() {
    let mut bench = Bench::new(vec![MemoryDisk::new([0; 512])]);
    for drive in [0x00, 0x7f, 0x81, 0xff] {
        for function in [0x00, 0x02, 0x08, 0x41, 0x42, 0x48] {
            let done = bench.call(0x13, frame(function << 8 | 1, 0x55aa, 1, drive));
            assert_eq!((done.carry_and_zero().0, done.ah()), (true, 1), "{function:x} {drive:x}");
        }
        assert_eq!(bench.call(0x13, frame(0x1500, 0, 0, drive)).ah(), 0);
    }
    for function in [0x05, 0x18, 0x45, 0x49, 0xff] {
        assert!(bench.call(0x13, frame(function << 8, 0, 0, 0x80)).carry_and_zero().0);
    }
    for ax in [0x5305, 0x2400, 0x8700, 0xe881, 0xec00] {
        let done = bench.call(0x15, frame(ax, 0, 0, 0));
        assert_eq!((done.carry_and_zero().0, done.ah()), (true, 0x86), "{ax:x}");
    }
    assert!(bench.call(0x1a, frame(0xb101, 0, 0, 0)).carry_and_zero().0);
}

#[test]
fn what_is_typed_ahead_waits_in_the_console() {
    let mut bench = Bench::new(vec![]);
    let typed: Vec<u8> = (b'a'..=b'z').collect();
    bench.console.push_input(&typed);
    assert_eq!(bench.call(0x16, frame(0x0100, 0, 0, 0)).al(), b'a');
    assert_eq!(bench.console.peek_input(), Some(b'b'));
    let keys: Vec<u8> = (0..26).map(|_| bench.call(0x16, frame(0, 0, 0, 0)).al()).collect();
    assert_eq!(keys, typed);
    assert!(bench.call(0x16, frame(0, 0, 0, 0)).again());
    // Nonsense in the pointers empties the buffer, and it works again.
    bench.memory.write_obj(0xffff_0003u32, GuestAddress(0x41a)).unwrap();
    assert_eq!(bench.call(0x16, frame(0x0500, 0, 0x1e61, 0)).al(), 0);
    assert_eq!(bench.call(0x16, frame(0x1000, 0, 0, 0)).ax(), 0x1e61);
}

/// Random registers: pointers into and around memory, small and huge counts.
fn hostile_frame(random: &mut StdRng) -> Frame {
    let mut any = || match random.random_range(0..4) {
        0 => random.random_range(0..0x100),
        1 => random.random_range(0..0x1_0000),
        2 => random.random(),
        _ => [0, 1, 0x7fff_ffff_ffff_ffff, u64::MAX, 0xffff, 0x1f_ffff][random.random_range(0..6)],
    };
    let mut frame = Frame::default();
    let regs = &mut frame.regs;
    for register in [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
    ] {
        *register = any();
    }
    for segment in [&mut frame.sregs.ds, &mut frame.sregs.es] {
        segment.base = if any() & 1 == 0 { any() & 0xffff0 } else { any() };
    }
    frame
}

/// What a call of INT 13h may write: memory, and the disk.
fn allowed(frame: &Frame, memory: &[u8]) -> (Vec<Range<u64>>, Range<u64>) {
    let word =
        |at: u64| (0..2).rev().fold(0, |all, i| all << 8 | u64::from(byte(memory, at.wrapping_add(i))));
    let long = |at: u64| (0..4).rev().fold(0, |all, i| all << 16 | word(at.wrapping_add(2 * i)));
    let (es, ds) = (frame.sregs.es.base, frame.sregs.ds.base.wrapping_add(frame.regs.rsi & 0xffff));
    let cylinder = u64::from(frame.ch()) | u64::from(frame.cl() & 0xc0) << 2;
    let chs = (cylinder * 16 + u64::from(frame.dh())) * 63 + u64::from(frame.cl() & 63);
    let bytes = u64::from(frame.al()) * 512;
    let buffer = match long(ds.wrapping_add(4)) as u32 {
        u32::MAX if byte(memory, ds) >= 24 => long(ds.wrapping_add(16)),
        pointer => u64::from(pointer >> 16) * 16 + u64::from(pointer & 0xffff),
    };
    let (blocks, lba) = (word(ds.wrapping_add(2)) * 512, long(ds.wrapping_add(8)));
    let status = range(0x474, 1);
    let mut written = vec![status.clone()];
    let mut disk = 0..0;
    match frame.ah() {
        0x02 => written.push(range(es.wrapping_add(frame.regs.rbx & 0xffff), bytes)),
        0x03 => disk = range(chs.saturating_sub(1) * 512, bytes),
        0x42 => written.extend([range(buffer, blocks), range(ds.wrapping_add(2), 2)]),
        0x43 => {
            (disk, written) =
                (range(lba.saturating_mul(512), blocks), vec![status, range(ds.wrapping_add(2), 2)])
        }
        0x44 => written.push(range(ds.wrapping_add(2), 2)),
        0x48 => written.push(range(ds, 30)),
        _ => {}
    }
    (written, disk)
}

fn range(start: u64, len: u64) -> Range<u64> {
    start..start.saturating_add(len)
}

fn byte(memory: &[u8], at: u64) -> u8 {
    usize::try_from(at).ok().and_then(|at| memory.get(at)).copied().unwrap_or(0)
}

fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let chunks = before.chunks(4096).zip(after.chunks(4096)).enumerate().filter(|(_, (a, b))| a != b);
    let bytes = chunks.flat_map(|(chunk, (a, b))| {
        (0..a.len()).filter(move |&i| a[i] != b[i]).map(move |i| chunk * 4096 + i)
    });
    bytes.map(|at| at as u64).collect()
}

#[test]
fn hostile_disk_calls_change_nothing_but_what_they_name() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let disk = MemoryDisk::patterned(&[], 3000);
    let mut bench = Bench::new(vec![disk.clone()]);
    for call in 0..600 {
        let mut frame = hostile_frame(&mut random);
        let functions = [0, 1, 2, 3, 4, 8, 0x15, 0x41, 0x42, 0x43, 0x44, 0x48, random.random()];
        frame.set_ah(functions[random.random_range(0..functions.len())]);
        if random.random_bool(0.9) {
            frame.set_dl(0x80);
        }
        // A packet, most of the time one that makes some sense.
        let (packet, at) =
            (hostile_packet(&mut random), frame.sregs.ds.base.wrapping_add(frame.regs.rsi & 0xffff));
        if random.random_bool(0.8) {
            // At the end of memory a part of it fits.
            let _ = bench.memory.write_slice(&packet, GuestAddress(at));
        }
        let before = bench.contents();
        let disk_before = disk.bytes.lock().unwrap().clone();
        let (written, on_disk) = allowed(&frame, &before);
        let done = bench.call(0x13, frame.clone());
        let after = bench.contents();
        for at in changed(&before, &after) {
            assert!(
                written.iter().any(|range| range.contains(&at)),
                "seed {seed}, call {call}: memory {at:#x}"
            );
        }
        for at in changed(&disk_before, &disk.bytes.lock().unwrap()) {
            assert!(on_disk.contains(&at), "seed {seed}, call {call}: disk {at:#x}");
        }
        assert!(!done.again(), "seed {seed}, call {call}");
    }
}

fn hostile_packet(random: &mut StdRng) -> [u8; 24] {
    let mut packet: [u8; 24] = random.random();
    if random.random_bool(0.8) {
        packet[0] = [16, 24, 15, 255][random.random_range(0..4)];
        packet[2..4].copy_from_slice(&random.random_range(0..140u16).to_le_bytes());
        packet[8..16].copy_from_slice(&random.random_range(0..3100u64).to_le_bytes());
    }
    if random.random_bool(0.3) {
        packet[4..8].fill(0xff);
        packet[16..24].copy_from_slice(&random.random_range(0..BENCH_MEMORY + 1000).to_le_bytes());
    }
    packet
}

#[test]
fn hostile_calls_of_all_other_services_return() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new(vec![]);
    for _ in 0..20_000 {
        let mut frame = hostile_frame(&mut random);
        frame.set_ah(random.random_range(0..0x20));
        let interrupt = [0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x1a][random.random_range(0..8)];
        match interrupt {
            0x15 => frame.set_ax(
                [0xe820, 0xe801, 0x88ff, 0x5300, 0x5301, 0x2402, 0xc0c0, 0xc100][random.random_range(0..8)],
            ),
            // Keys, so that nobody waits.
            0x16 => bench.console.push_input(&random.random::<[u8; 2]>()),
            _ => {}
        }
        bench.call(interrupt, frame);
    }
}

#[test]
fn the_screen_follows_the_cursor_with_relative_moves() {
    let mut machine = Bench::new(vec![]);
    let record = crate::vm::boot::harness::Record::default();
    machine.bios.console = Console::new(record.clone()).unwrap();
    // "ab" by characters that leave the cursor, which the guest moves itself.
    machine.call(0x10, frame(0x0961, 7, 1, 0));
    machine.call(0x10, frame(0x0200, 0, 0, 0x0001));
    machine.call(0x10, frame(0x0962, 7, 1, 0));
    // Row 3, column 10; then back to row 1.
    machine.call(0x10, frame(0x0200, 0, 0, 0x030a));
    machine.call(0x10, frame(0x0ec4, 7, 0, 0));
    machine.call(0x10, frame(0x0200, 0, 0, 0x0102));
    machine.call(0x10, frame(0x0e78, 7, 0, 0));
    let cursor = machine.call(0x10, frame(0x0300, 0, 0, 0));
    assert_eq!(cursor.dx(), 0x0103);
    machine.bios.console.flush();
    let shown = String::from_utf8(record.0.lock().unwrap().clone()).unwrap();
    assert_eq!(shown, "ab\n\n\n\x1b[8C─\x1b[2A\x08\x08\x08\x08\x08\x08\x08\x08\x08x");
}
