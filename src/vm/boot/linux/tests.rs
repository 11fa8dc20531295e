//! Kernels made of headers only: where things are put and what is refused. That a real kernel boots is shown
//! in tests/vm.

use super::*;
use crate::vm::layout::{ABOVE_4G, ACPI_START};
use crate::vm::memory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Offsets in the boot parameters (Documentation/arch/x86/zero-page.rst and boot.rst of Linux).
const ZERO_PAGE: u64 = 0x7000;
const RSDP: u64 = 0x70;
const E820_ENTRIES: u64 = 0x1e8;
const TYPE_OF_LOADER: u64 = 0x210;
const RAMDISK_IMAGE: u64 = 0x218;
const RAMDISK_SIZE: u64 = 0x21c;
const COMMAND_LINE_POINTER: u64 = 0x228;
const E820_TABLE: u64 = 0x2d0;

/// A bzImage of protocol 2.15: 1 KiB of header and 4 KiB of kernel.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0x90; 1024 + 4096];
    file[..1024].fill(0);
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0f, 0x02]); // version
    put(0x211, &[1]); // loadflags: loaded high
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &[1, 0]); // xloadflags: 64-bit entry
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x100_0000u32.to_le_bytes()); // init_size
    file
}

struct Fixture {
    folder: TempDir,
    memory: Arc<GuestMemory>,
    layout: Layout,
    files: Files,
}

impl Fixture {
    fn new(mib: u64, kernel: &[u8]) -> Fixture {
        let folder = TempDir::new().unwrap();
        let layout = Layout::new(mib * MIB, 40).unwrap();
        let memory = memory::allocate(&layout).unwrap();
        let files = Files { kernel: folder.path().join("kernel"), ..Files::default() };
        std::fs::write(&files.kernel, kernel).unwrap();
        Fixture { folder, memory, layout, files }
    }

    fn initrd(mut self, bytes: &[u8]) -> Fixture {
        let path = self.folder.path().join("initrd");
        std::fs::write(&path, bytes).unwrap();
        self.files.initrd = Some(path);
        self
    }

    fn command_line(mut self, text: &str) -> Fixture {
        self.files.command_line = text.to_owned();
        self
    }

    fn load(&self) -> Result<Entry> {
        LinuxBoot::open(&self.files, self.memory.clone(), self.layout.clone(), ACPI_START)?.load()
    }

    fn refusal(&self) -> String {
        self.load().unwrap_err().to_string()
    }

    fn u32(&self, offset: u64) -> u32 {
        self.memory.read_obj(GuestAddress(ZERO_PAGE + offset)).unwrap()
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

#[test]
fn the_kernel_finds_command_line_initrd_tables_and_memory_map() {
    let initrd: Vec<u8> = (0..10_000u32).map(|index| index as u8).collect();
    let guest = Fixture::new(64, &bzimage()).initrd(&initrd).command_line("console=ttyS0 quiet");
    guest.load().unwrap();
    assert_eq!(guest.bytes(HIGH_RAM_START, 4096), vec![0x90; 4096]);
    assert_eq!(guest.bytes(guest.u32(COMMAND_LINE_POINTER).into(), 20), b"console=ttyS0 quiet\0");
    let start = u64::from(guest.u32(RAMDISK_IMAGE));
    assert_eq!(guest.u32(RAMDISK_SIZE) as usize, initrd.len());
    assert_eq!(guest.bytes(start, initrd.len()), initrd);
    assert!(start % 4096 == 0 && start >= 32 * MIB, "above the kernel's run-time memory: {start:#x}");
    assert_eq!(guest.u32(RSDP), ACPI_START as u32);
    assert_eq!(guest.bytes(ZERO_PAGE + TYPE_OF_LOADER, 1), [0xff]);
    let lines = guest.layout.e820();
    assert_eq!(usize::from(guest.bytes(ZERO_PAGE + E820_ENTRIES, 1)[0]), lines.len());
    for (index, line) in (0u64..).zip(&lines) {
        let at = ZERO_PAGE + E820_TABLE + 20 * index;
        let entry = [line.start.to_le_bytes(), line.len.to_le_bytes()].concat();
        assert_eq!(guest.bytes(at, 16), entry);
        assert_eq!(guest.u32(E820_TABLE + 20 * index + 16), line.kind as u32);
    }
}

#[test]
fn the_initrd_stays_below_4_gib_and_below_what_the_kernel_reaches() {
    for (mib, limit) in [(1024, 0x1fff_ffffu32), (5120, 0x7fff_ffff), (5120, u32::MAX)] {
        let mut kernel = bzimage();
        kernel[0x22c..0x230].copy_from_slice(&limit.to_le_bytes());
        let guest = Fixture::new(mib, &kernel).initrd(&[7; 5000]);
        guest.load().unwrap();
        let end = u64::from(guest.u32(RAMDISK_IMAGE)) + 5000;
        assert!(end <= u64::from(limit) + 1 && end <= guest.layout.low_ram() && end <= ABOVE_4G);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_size() {
    let long = "x".repeat(2048);
    let message = Fixture::new(64, &bzimage()).command_line(&long).refusal();
    assert!(message.contains("2048") && message.contains("2047"), "{message}");
    let message = Fixture::new(64, &bzimage()).initrd(&vec![0; 33 * MIB as usize]).refusal();
    assert!(message.contains("initrd") && message.contains("-m"), "{message}");
    let message = Fixture::new(16, &bzimage()).refusal();
    assert!(message.contains("needs 32 MiB") && message.contains("-m"), "{message}");
}

#[test]
fn files_that_are_no_kernels_are_told_apart() {
    for (bytes, words) in [
        (&b""[..], "neither"),
        (b"#!/bin/sh\n", "neither"),
        (&[0; 4096], "neither"),
        (b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0", "not for x86-64"),
    ] {
        let message = Fixture::new(16, bytes).refusal();
        assert!(message.contains("is not a kernel") && message.contains(words), "{message}");
    }
}

#[test]
fn broken_headers_are_refused_without_harm() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..200 {
        let mut kernel = bzimage();
        if round % 2 == 0 {
            kernel[..64].fill(0);
            kernel[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
            kernel[54] = 56;
            kernel[32] = 64;
        }
        for _ in 0..8 {
            let offset = random.random_range(if round % 2 == 0 { 16..200 } else { 0x1f1..0x268 });
            kernel[offset] = random.random();
        }
        kernel.truncate(random.random_range(0..=kernel.len()));
        // Either it loads or it says why.
        let _ = Fixture::new(4, &kernel).load();
    }
}
