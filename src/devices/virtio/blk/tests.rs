//! The block device against a driver that writes its rings by hand, on a raw image.

mod failures;

use super::*;
use crate::block::options::{CacheMode, OpenOptions};
use crate::devices::events::fake::FakeVm;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// Guest memory: two regions that touch at `SEAM`.
const SEAM: u64 = 0x2_0000;
const MEMORY: u64 = 0x4_0000;
/// The rings and the indirect table.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const TABLE: u64 = 0x6000;
/// From here on there are buffers.
const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x1_1000;
const DATA: u64 = 0x1_2000;

const BASE: u64 = 0xc000_0000;
const IMAGE: usize = 1 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the driver puts where it expects a status.
const NONE: u8 = 0xee;

/// A descriptor: address, length, flags, next.
#[derive(Clone, Copy, Debug)]
struct Desc(u64, u32, u16, u16);
/// A buffer: address, length, flags.
type Part = (u64, u32, u16);
/// A segment of a discard or write-zeroes request: sector, sectors, flags.
type Segment = (u64, u32, u32);

/// A chain of descriptors that follow each other, from (address, length, flags).
fn chain(parts: &[Part]) -> Vec<Desc> {
    let last = parts.len() - 1;
    let link = |at| if at < last { NEXT } else { 0 };
    (0..)
        .zip(parts)
        .map(|(at, &(addr, len, flags))| Desc(addr, len, flags | link(at), at as u16 + 1))
        .collect()
}

struct Guest {
    device: Box<dyn PciDevice>,
    handle: BlkHandle,
    vm: Arc<FakeVm>,
    memory: GuestMemoryMmap,
    drive: Arc<Drive>,
    image: tempfile::NamedTempFile,
    available: u16,
    used: u16,
}

impl Guest {
    fn new(options: OpenOptions, features: u64) -> Guest {
        Guest::with(options, BlkOptions { serial: "cowvm-1".into(), ..Default::default() }, features)
    }

    fn with(options: OpenOptions, blk: BlkOptions, features: u64) -> Guest {
        Guest::named(str::to_owned, options, blk, features)
    }

    /// A guest whose image is opened by the name that `name` makes of its path.
    fn named(
        name: impl FnOnce(&str) -> String,
        options: OpenOptions,
        blk: BlkOptions,
        features: u64,
    ) -> Guest {
        let mut image = tempfile::NamedTempFile::new().unwrap();
        image.write_all(&pattern()).unwrap();
        let options = OpenOptions { format: Some("raw".into()), ..options };
        let drive = Drive::open("test", &name(image.path().to_str().unwrap()), &options).unwrap();
        let regions = [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (MEMORY - SEAM) as usize)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let vm = FakeVm::new();
        let interrupts = Interrupts::new(vm.clone()).unwrap();
        let (device, handle) =
            pci_disk(drive.clone(), memory.clone(), &interrupts, vm.clone(), &blk).unwrap();
        let mut guest = Guest { device, handle, vm, memory, drive, image, available: 0, used: 0 };
        guest.device.write_config(0x10, &(BASE as u32).to_le_bytes());
        guest.device.write_config(4, &[6, 0]);
        guest.initialise(features | VERSION_1);
        guest
    }

    fn store(&mut self, offset: u64, value: u64, len: usize) {
        self.device.write_bar(0, offset, &value.to_le_bytes()[..len]);
    }

    fn load(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.read_bar(0, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn status(&mut self) -> u64 {
        self.load(0x14, 1)
    }

    /// Reset, handshake, empty rings, vectors 0 and 1.
    fn initialise(&mut self, features: u64) {
        self.store(0x14, 0, 1);
        self.store(0x14, 3, 1);
        for half in 0..2 {
            self.store(0x08, half, 4);
            self.store(0x0c, features >> (32 * half) & 0xffff_ffff, 4);
        }
        self.store(0x14, 0xb, 1);
        assert_eq!(self.status(), 0xb);
        self.memory.write_slice(&[0; 0x6000], GuestAddress(DESCRIPTORS)).unwrap();
        for (offset, area) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            self.store(offset, area, 8);
        }
        for vector in 0..2 {
            self.store(0x4000 + 16 * vector, 0xfee0_0000, 8);
            self.store(0x4008 + 16 * vector, 0x30 + vector, 8);
        }
        self.device.write_config(0x42, &[0, 0x80]);
        self.store(0x10, 0, 2);
        self.store(0x1a, 1, 2);
        self.store(0x1c, 1, 2);
        self.store(0x14, 0xf, 1);
        assert_eq!(self.status(), 0xf);
        (self.available, self.used) = (0, 0);
    }

    fn put16(&self, at: u64, value: u16) {
        self.memory.store(value, GuestAddress(at), Ordering::SeqCst).unwrap();
    }

    fn get16(&self, at: u64) -> u16 {
        self.memory.load(GuestAddress(at), Ordering::SeqCst).unwrap()
    }

    fn get8(&self, at: u64) -> u8 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.memory.read_slice(&mut out, GuestAddress(at)).unwrap();
        out
    }

    fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Puts descriptors into a table, from entry `first` on; `next` counts from there.
    fn put_descriptors(&self, table: u64, first: u16, descriptors: &[Desc]) {
        for (at, &Desc(addr, len, flags, next)) in (u64::from(first)..).zip(descriptors) {
            let at = table + 16 * at;
            self.memory.write_obj(addr, GuestAddress(at)).unwrap();
            self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(next.wrapping_add(first), GuestAddress(at + 14)).unwrap();
        }
    }

    fn put_header(&self, at: u64, kind: u32, sector: u64) {
        self.memory.write_obj(u64::from(kind), GuestAddress(at)).unwrap();
        self.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
    }

    fn publish(&mut self, head: u16) {
        self.put16(AVAILABLE + 4 + 2 * u64::from(self.available % 256), head);
        self.available = self.available.wrapping_add(1);
        self.put16(AVAILABLE + 2, self.available);
    }

    fn kick(&self) {
        assert!(self.vm.kick(BASE + 0x3000));
    }

    fn wait(&mut self, mut done: impl FnMut(&mut Guest) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "the device does not answer");
            std::thread::yield_now();
        }
    }

    /// The next entry of the used ring: head and length.
    fn take_used(&mut self) -> (u32, u32) {
        self.wait(|guest| guest.get16(USED + 2) != guest.used);
        let entry = GuestAddress(USED + 4 + 8 * u64::from(self.used % 256));
        self.used = self.used.wrapping_add(1);
        let id_and_len: u64 = self.memory.read_obj(entry).unwrap();
        (id_and_len as u32, (id_and_len >> 32) as u32)
    }

    /// Sends a chain and waits for it; the length in the used ring.
    fn send(&mut self, descriptors: &[Desc]) -> u32 {
        self.put_descriptors(DESCRIPTORS, 0, descriptors);
        self.publish(0);
        self.kick();
        let (head, len) = self.take_used();
        assert_eq!(head, 0);
        len
    }

    /// Sends a request with its header; `data` are its buffers. Status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        self.put_header(HEADER, kind, sector);
        self.fill(STATUS, &[NONE]);
        let parts = [&[(HEADER, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat();
        let len = self.send(&chain(&parts));
        (self.get8(STATUS), len)
    }

    fn read(&mut self, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        let data: Vec<_> = data.iter().map(|&(addr, len)| (addr, len, WRITE)).collect();
        self.request(0, sector, &data)
    }

    fn write(&mut self, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        let data: Vec<_> = data.iter().map(|&(addr, len)| (addr, len, 0)).collect();
        self.request(1, sector, &data)
    }

    /// Sends a discard or write-zeroes request.
    fn segments(&mut self, kind: u32, segments: &[Segment]) -> (u8, u32) {
        for (at, &(sector, sectors, flags)) in (0..).zip(segments) {
            self.memory.write_obj(sector, GuestAddress(DATA + 16 * at)).unwrap();
            self.memory.write_obj(sectors, GuestAddress(DATA + 16 * at + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(DATA + 16 * at + 12)).unwrap();
        }
        self.request(kind, 0, &[(DATA, 16 * segments.len() as u32, 0)])
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.image.path()).unwrap()
    }

    /// Sends what breaks the queue, and checks that a reset mends it.
    fn breaks(&mut self, what: &str, send: impl FnOnce(&mut Guest)) {
        send(self);
        self.kick();
        self.wait(|guest| guest.status() == 0x4f);
        assert_eq!(self.get16(USED + 2), self.used, "{what}");
        self.vm.raised(24);
        self.initialise(VERSION_1);
        assert_eq!(self.read(0, &[(DATA, 512)]), (OK, 513), "{what}");
    }
}

static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..IMAGE as u32).map(|at| (at / 512 * 7 + at % 251) as u8).collect());

/// What the image holds at first.
fn pattern() -> Vec<u8> {
    PATTERN.clone()
}

fn writable() -> OpenOptions {
    OpenOptions { read_only: false, ..Default::default() }
}

#[test]
fn reads_and_writes_move_the_image_s_bytes() {
    let mut guest = Guest::new(writable(), FLUSH);
    let image = pattern();
    assert_eq!(guest.read(3, &[(DATA, 1024)]), (OK, 1025));
    assert_eq!(guest.bytes(DATA, 1024), image[1536..2560]);

    let new: Vec<u8> = (0..1536).map(|at| (at * 31 / 7) as u8).collect();
    guest.fill(DATA, &new);
    assert_eq!(guest.write(2047 - 2, &[(DATA, 1536)]), (OK, 1));
    assert_eq!(guest.request(4, 0, &[]), (OK, 1));
    let mut expected = image;
    expected[(2047 - 2) * 512..].copy_from_slice(&new);
    assert_eq!(guest.image(), expected);
}

#[test]
fn buffers_may_be_in_pieces_of_any_size_and_cross_regions_of_memory() {
    let mut guest = Guest::new(writable(), FLUSH);
    let pieces =
        [(DATA, 1), (DATA + 0x1001, 510), (SEAM - 100, 1000), (DATA + 0x2000, 0), (DATA + 0x3003, 537)];
    assert_eq!(guest.read(8, &pieces), (OK, 2049));
    let got: Vec<u8> = pieces.iter().flat_map(|&(at, len)| guest.bytes(at, len as usize)).collect();
    assert_eq!(got, pattern()[4096..6144]);
    assert_eq!(guest.write(100, &pieces), (OK, 1));
    assert_eq!(guest.image()[51200..53248], pattern()[4096..6144]);
}

#[test]
fn header_data_and_status_may_share_descriptors() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.put_header(DATA, 1, 5);
    guest.fill(DATA + 16, &[0x5a; 512]);
    assert_eq!(guest.send(&chain(&[(DATA, 7, 0), (DATA + 7, 521, 0), (STATUS, 1, WRITE)])), 1);
    assert_eq!((guest.get8(STATUS), &guest.image()[2560..3072]), (OK, &[0x5a; 512][..]));
    guest.put_header(HEADER, 0, 5);
    assert_eq!(guest.send(&chain(&[(HEADER, 16, 0), (DATA, 513, WRITE)])), 513);
    assert_eq!((guest.bytes(DATA, 512), guest.get8(DATA + 512)), (vec![0x5a; 512], OK));
}

#[test]
fn a_chain_may_stand_in_an_indirect_table() {
    let mut guest = Guest::new(writable(), FLUSH | 1 << 28);
    guest.put_header(HEADER, 0, 1);
    let data = (0..254).map(|at| (DATA + 2 * at, if at < 253 { 2 } else { 6 }, WRITE));
    let parts: Vec<_> = std::iter::once((HEADER, 16, 0)).chain(data).chain([(STATUS, 1, WRITE)]).collect();
    guest.put_descriptors(TABLE, 0, &chain(&parts));
    assert_eq!(guest.send(&[Desc(TABLE, 16 * 256, INDIRECT, 0)]), 513);
    assert_eq!((guest.get8(STATUS), guest.bytes(DATA, 512)), (OK, pattern()[512..1024].to_vec()));
}

#[test]
fn the_serial_number_is_padded_to_twenty_bytes() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.fill(DATA, &[0xaa; 32]);
    assert_eq!(guest.request(8, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    assert_eq!(guest.bytes(DATA, 21), b"cowvm-1\0\0\0\0\0\0\0\0\0\0\0\0\0\xaa");
    assert_eq!(guest.request(8, 0, &[(DATA, 32, WRITE)]), (OK, 21));
    assert_eq!(guest.request(8, 0, &[(DATA, 3, WRITE)]), (OK, 4));
}

#[test]
fn zeroes_are_written_by_segment() {
    let mut guest = Guest::new(writable(), FLUSH | WRITE_ZEROES);
    assert_eq!(guest.segments(13, &[(10, 2, 0), (2040, 8, 1)]), (OK, 1));
    let mut expected = pattern();
    expected[5120..6144].fill(0);
    expected[2040 * 512..].fill(0);
    assert_eq!(guest.image(), expected);
    let cases: [(&[Segment], u8); 7] = [
        (&[(0, 1, 2)], UNSUPP),
        (&[(0, 1, 0x8000_0001)], UNSUPP),
        (&[(0, (1 << 22) + 1, 0)], IOERR),
        (&[(2047, 2, 0)], IOERR),
        (&[(u64::MAX, 1, 0)], IOERR),
        (&[(1 << 55, 1, 0)], IOERR),
        (&[(0, 0, 0); 33], IOERR),
    ];
    for (segments, status) in cases {
        assert_eq!(guest.segments(13, segments), (status, 1), "{segments:x?}");
    }
    assert_eq!(guest.request(13, 0, &[(DATA, 17, 0)]), (IOERR, 1));
    assert_eq!(guest.request(13, 0, &[]), (IOERR, 1));
    assert_eq!(guest.image(), expected);
}

#[test]
fn discards_need_the_feature_and_know_no_flags() {
    let mut guest = Guest::new(writable(), FLUSH);
    assert_eq!(guest.segments(11, &[(0, 8, 0)]), (UNSUPP, 1));
    assert_eq!(guest.segments(13, &[(0, 8, 0)]), (UNSUPP, 1));
    let mut guest = Guest::new(OpenOptions { unmap: true, ..writable() }, FLUSH | DISCARD);
    assert_eq!(guest.segments(11, &[(0, 8, 0)]), (OK, 1));
    assert_eq!(guest.segments(11, &[(0, 8, 1)]), (UNSUPP, 1));
    assert_eq!(guest.segments(11, &[(2048, 1, 0)]), (IOERR, 1));
    assert_eq!(guest.image()[4096..], pattern()[4096..]);
}

#[test]
fn a_read_only_drive_refuses_to_write_and_still_reads() {
    let mut guest = Guest::new(OpenOptions { read_only: true, ..Default::default() }, FLUSH | 1 << 5);
    assert_eq!(guest.write(0, &[(DATA, 512)]), (IOERR, 1));
    assert_eq!(guest.segments(13, &[(0, 1, 0)]), (UNSUPP, 1));
    assert_eq!(guest.request(4, 0, &[]), (OK, 1));
    assert_eq!(guest.read(0, &[(DATA, 512)]), (OK, 513));
    assert_eq!(guest.image(), pattern());
}

#[test]
fn requests_that_make_no_sense_get_an_error_status() {
    let mut guest = Guest::new(writable(), FLUSH);
    let cases: [(u32, u64, &[Part], u8); 16] = [
        (0, 0, &[(DATA, 511, WRITE)], IOERR),
        (0, 0, &[(DATA, 513, WRITE)], IOERR),
        (0, 0, &[], IOERR),
        (0, 0, &[(DATA, 512, 0)], IOERR),
        (1, 0, &[], IOERR),
        (1, 0, &[(DATA, 100, 0)], IOERR),
        (0, 2048, &[(DATA, 512, WRITE)], IOERR),
        (0, 2047, &[(DATA, 1024, WRITE)], IOERR),
        (1, u64::MAX, &[(DATA, 512, 0)], IOERR),
        (1, 1 << 55, &[(DATA, 512, 0)], IOERR),
        (1, 0x7f_ffff_ffff_ffff, &[(DATA, 512, 0)], IOERR),
        (0, 0, &[(MEMORY - 100, 512, WRITE)], IOERR),
        (0, 0, &[(u64::MAX - 100, 512, WRITE)], IOERR),
        (1, 0, &[(1 << 40, 512, 0)], IOERR),
        (2, 0, &[(DATA, 512, WRITE)], UNSUPP),
        (0xffff_ffff, 0, &[(DATA, 512, 0)], UNSUPP),
    ];
    for (kind, sector, data, status) in cases {
        assert_eq!(guest.request(kind, sector, data), (status, 1), "{kind} {sector:x} {data:x?}");
    }
    assert_eq!(guest.status(), 0xf);
    assert_eq!(guest.image(), pattern());
}

#[test]
fn chains_without_header_or_status_are_given_back() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.fill(STATUS, &[NONE]);
    assert_eq!(guest.send(&chain(&[(STATUS, 1, WRITE)])), 1);
    assert_eq!(guest.get8(STATUS), IOERR);
    assert_eq!(guest.send(&chain(&[(HEADER, 15, 0), (STATUS, 1, WRITE)])), 1);
    guest.put_header(HEADER, 4, 0);
    assert_eq!(guest.send(&chain(&[(HEADER, 16, 0)])), 0);
    assert_eq!(guest.send(&chain(&[(HEADER, 16, 0), (STATUS, 0, WRITE)])), 0);
    assert_eq!(guest.send(&chain(&[(HEADER, 16, 0), (MEMORY, 1, WRITE)])), 0);
    assert_eq!(guest.send(&chain(&[(STATUS, 1, WRITE), (HEADER, 16, 0)])), 1, "in the wrong order");
    assert_eq!((guest.get8(STATUS), guest.status()), (IOERR, 0xf));
}

#[test]
fn a_driver_that_breaks_the_rings_must_reset_the_device() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.breaks("a chain that loops", |guest| {
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(HEADER, 16, NEXT, 1), Desc(DATA, 512, NEXT | WRITE, 0)]);
        guest.publish(0);
    });
    guest.breaks("a chain that leaves the table", |guest| {
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(HEADER, 16, NEXT, 256)]);
        guest.publish(0);
    });
    guest.breaks("a head outside the table", |guest| guest.publish(256));
    guest.breaks("an index that runs ahead", |guest| {
        guest.put16(AVAILABLE + 2, guest.available.wrapping_add(257));
    });
    guest.breaks("an indirect table in an indirect table", |guest| {
        guest.put_descriptors(TABLE, 0, &[Desc(TABLE, 16, INDIRECT, 0)]);
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(TABLE, 16, INDIRECT, 0)]);
        guest.publish(0);
    });
    guest.breaks("an indirect table of odd length", |guest| {
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(TABLE, 17, INDIRECT, 0)]);
        guest.publish(0);
    });
    guest.breaks("an indirect table outside memory", |guest| {
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(MEMORY, 16, INDIRECT, 0)]);
        guest.publish(0);
    });
    guest.breaks("a chain longer than the queue", |guest| {
        let table: Vec<_> = (0..257).map(|at| Desc(DATA, 2, WRITE | NEXT, at + 1)).collect();
        guest.put_descriptors(TABLE, 0, &table);
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(TABLE, 16 * 257, INDIRECT, 0)]);
        guest.publish(0);
    });
}

#[test]
fn a_broken_queue_interrupts_the_driver_once() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.publish(256);
    guest.kick();
    guest.wait(|guest| guest.status() == 0x4f);
    guest.device.pause();
    assert_eq!((guest.vm.raised(24), guest.vm.raised(25)), (1, 0));
}

/// Publishes `count` reads of one sector each, all different.
fn publish_reads(guest: &mut Guest, count: u16) {
    for n in 0..count {
        let (header, data) = (HEADER + 16 * u64::from(n), DATA + 1024 * u64::from(n));
        guest.put_header(header, 0, u64::from(n));
        guest.fill(data + 512, &[NONE]);
        let parts = chain(&[(header, 16, 0), (data, 513, WRITE)]);
        guest.put_descriptors(DESCRIPTORS, 2 * n, &parts);
        guest.publish(2 * n);
    }
}

fn check_reads(guest: &mut Guest, count: u16) {
    let mut heads: Vec<_> = (0..count).map(|_| guest.take_used()).collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..count).map(|n| (2 * u32::from(n), 513)).collect::<Vec<_>>());
    for n in 0..usize::from(count) {
        let data = guest.bytes(DATA + 1024 * n as u64, 513);
        assert_eq!((&data[..512], data[512]), (&PATTERN[512 * n..][..512], OK));
    }
}

#[test]
fn a_full_ring_is_served_with_one_interrupt_where_the_driver_asks_for_it() {
    let mut guest = Guest::new(writable(), FLUSH | EVENT_IDX);
    // The driver's used_event, behind the available ring: tell me when entry 99 is used.
    guest.put16(AVAILABLE + 4 + 2 * 256, 99);
    publish_reads(&mut guest, 100);
    guest.kick();
    check_reads(&mut guest, 100);
    guest.device.pause();
    assert_eq!((guest.vm.raised(25), guest.vm.raised(24)), (1, 0));
    assert_eq!(guest.load(0x1000, 1), 1);
    // The device's avail_event, behind the used ring: kick me for entry 100.
    assert_eq!(guest.get16(USED + 4 + 8 * 256), 100);
}

#[test]
fn without_the_event_index_flags_silence_both_sides() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.put16(AVAILABLE, 1);
    publish_reads(&mut guest, 50);
    guest.kick();
    check_reads(&mut guest, 50);
    guest.device.pause();
    assert_eq!(guest.vm.raised(25), 0);
    assert_eq!(guest.get16(USED), 0, "kicks are wanted by a device that found nothing more to do");
    guest.put16(AVAILABLE, 0);
    guest.device.resume();
    assert_eq!(guest.read(0, &[(DATA, 512)]), (OK, 513));
    guest.device.pause();
    assert_eq!(guest.vm.raised(25), 1);
}

#[test]
fn the_rings_wrap_around() {
    let mut guest = Guest::new(writable(), FLUSH | EVENT_IDX);
    for round in 0..3 {
        for _ in 0..7 {
            publish_reads(&mut guest, 100);
            guest.kick();
            check_reads(&mut guest, 100);
        }
        assert_eq!(guest.available, 700 * (round + 1));
    }
}

#[test]
fn a_paused_device_takes_nothing_and_goes_on_without_a_kick() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.device.pause();
    publish_reads(&mut guest, 10);
    guest.kick();
    guest.drive.call(|local| async move { local.engine().yield_now().await }).unwrap();
    assert_eq!(guest.get16(USED + 2), 0);
    guest.device.resume();
    check_reads(&mut guest, 10);
}

#[test]
fn pausing_waits_for_what_is_in_flight() {
    let mut guest = Guest::new(writable(), FLUSH);
    for _ in 0..20 {
        guest.initialise(VERSION_1);
        publish_reads(&mut guest, 100);
        guest.kick();
        guest.device.pause();
        let memory = guest.bytes(0, MEMORY as usize);
        guest.drive.call(|local| async move { local.engine().yield_now().await }).unwrap();
        assert!(memory == guest.bytes(0, MEMORY as usize));
        guest.device.resume();
        check_reads(&mut guest, 100);
    }
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let mut guest = Guest::new(writable(), FLUSH | EVENT_IDX);
    let (release, released) = async_channel::bounded::<()>(1);
    // Requests wait behind the drained section.
    let hold = |local: std::rc::Rc<crate::block::drive::Local>| async move {
        let drained = local.drained().await;
        local.engine().spawn(async move {
            let _ = released.recv().await;
            drop(drained);
        });
    };
    guest.drive.call(hold).unwrap();
    publish_reads(&mut guest, 100);
    guest.kick();
    guest.wait(|guest| guest.get16(USED + 4 + 8 * 256) == 100);
    assert_eq!(guest.get16(USED + 2), 0, "all taken, none answered");
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| guest.store(0x14, 0, 1));
        release.close();
        reset.join().unwrap();
    });
    assert_eq!((guest.get16(USED + 2), guest.status()), (100, 0));
    check_reads(&mut guest, 100);
}

#[test]
fn after_a_reset_no_old_request_writes_to_memory() {
    let mut guest = Guest::new(writable(), FLUSH);
    for _ in 0..20 {
        publish_reads(&mut guest, 100);
        guest.kick();
        guest.store(0x14, 0, 1);
        assert_eq!(guest.status(), 0);
        guest.fill(0, &vec![0x77; MEMORY as usize]);
        guest.drive.call(|local| async move { local.engine().yield_now().await }).unwrap();
        assert!(guest.bytes(0, MEMORY as usize) == vec![0x77; MEMORY as usize]);
        guest.initialise(VERSION_1);
    }
}

#[test]
fn a_driver_without_flush_has_its_writes_flushed() {
    // Nothing to see from here but that it works: the drive flushes after each write.
    for cache in [CacheMode::WRITEBACK, CacheMode { writeback: false, ..CacheMode::WRITEBACK }] {
        let mut guest = Guest::new(OpenOptions { cache, ..writable() }, WRITE_ZEROES);
        assert_eq!(guest.write(0, &[(DATA, 512)]), (OK, 1));
        assert_eq!(guest.segments(13, &[(8, 8, 1)]), (OK, 1));
    }
}

#[test]
fn the_guest_sees_the_drive_s_size_and_that_it_changed() {
    let mut guest = Guest::new(writable(), FLUSH);
    assert_eq!(guest.load(0x2000, 8), IMAGE as u64 / 512);
    let handle = guest.handle.clone();
    handle.config_changed();
    assert_eq!((guest.load(0x15, 1), guest.vm.raised(24)), (1, 1));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let cases = [
        (BlkOptions { serial: "123456789012345678901".into(), ..Default::default() }, "the serial number"),
        (BlkOptions { logical_block_size: 513, ..Default::default() }, "the logical block size"),
        (BlkOptions { logical_block_size: 256, ..Default::default() }, "the logical block size"),
        (BlkOptions { logical_block_size: 4096, ..Default::default() }, "the physical block size"),
    ];
    for (options, message) in cases {
        assert!(options.check().unwrap_err().to_string().starts_with(message));
    }
    let options =
        BlkOptions { serial: "12345678901234567890".into(), physical_block_size: 4096, ..Default::default() };
    options.check().unwrap();
    drop(Guest::with(writable(), options, FLUSH));
}

#[test]
fn blocks_of_a_host_s_device_are_shown_as_far_as_virtio_has_them() {
    let of = |logical, physical| {
        let options = BlkOptions::default().with_blocks(logical, physical);
        options.check().unwrap();
        (options.logical_block_size, options.physical_block_size)
    };
    assert_eq!(of(512, 4096), (512, 4096));
    assert_eq!(of(4096, 512), (4096, 4096));
    assert_eq!(of(65536, 4 << 20), (32768, 2 << 20));
}

#[test]
fn a_drive_that_was_closed_first_does_not_hang_the_device() {
    let mut guest = Guest::new(writable(), FLUSH);
    guest.drive.close().unwrap();
    guest.store(0x14, 0, 1);
    assert_eq!(guest.status(), 0);
}

/// One random descriptor: mostly buffers, sometimes nonsense.
fn random_descriptor(rng: &mut StdRng) -> Desc {
    let addr = match rng.random_range(0..12) {
        0 => SEAM - rng.random_range(1..600),
        1 => MEMORY - rng.random_range(1..600),
        2 => rng.random(),
        3 => MEMORY + rng.random_range(0..0x1000),
        4..7 => HEADER,
        _ => DATA + rng.random_range(0..0x4000),
    };
    let lengths = [0, 1, 15, 16, 16, 16, 17, 511, 512, 512, 513, 1024, 4096, 0x7fff_fe00, u32::MAX];
    let len = lengths[rng.random_range(0..lengths.len())];
    let flags = if rng.random_ratio(1, 20) { rng.random() } else { rng.random_range(0..2) * WRITE };
    Desc(addr, len, flags, 0)
}

/// A chain of up to seven such descriptors, most of them linked in order.
fn random_chain(rng: &mut StdRng) -> Vec<Desc> {
    let mut chain: Vec<_> = (0..rng.random_range(1..8)).map(|_| random_descriptor(rng)).collect();
    if rng.random_ratio(3, 4) {
        chain[0] = Desc(HEADER, 16, 0, 0);
        chain.sort_by_key(|desc| desc.2 & WRITE);
    }
    let last = chain.len() - 1;
    for (at, desc) in (0..).zip(&mut chain) {
        let wild = rng.random_ratio(1, 40);
        desc.3 = if wild { rng.random_range(0..300) } else { at as u16 + 1 };
        if at < last || wild {
            desc.2 |= NEXT;
        }
    }
    chain
}

/// What the device may change: the buffers that are writable, and the used ring.
fn may_change(chain: &[Desc]) -> Vec<bool> {
    let mut may = vec![false; MEMORY as usize];
    may[USED as usize..USED as usize + 6 + 8 * 256].fill(true);
    for &Desc(addr, len, ..) in chain.iter().filter(|desc| desc.2 & WRITE != 0) {
        let end = addr.saturating_add(len.into()).min(MEMORY);
        if addr < end {
            may[addr as usize..end as usize].fill(true);
        }
    }
    may
}

#[test]
fn random_chains_do_no_harm() {
    let seed = rand::rng().random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let features = FLUSH | WRITE_ZEROES | DISCARD | VERSION_1 | 1 << 28;
    let mut guest = Guest::new(OpenOptions { unmap: true, ..writable() }, features);
    let mut answered = [0; 2];
    for round in 0..1500 {
        let chain = random_chain(&mut rng);
        guest.put_header(
            HEADER,
            [0, 0, 1, 4, 8, 11, 13, 99][rng.random_range(0..8)],
            match rng.random_range(0..8) {
                0 => rng.random(),
                1 => 2047,
                _ => rng.random_range(0..2040),
            },
        );
        guest.put_descriptors(DESCRIPTORS, 0, &[Desc(0, 0, 0, 0); 256]);
        if rng.random_ratio(1, 3) {
            guest.put_descriptors(TABLE, 0, &chain);
            let len = 16 * chain.len() as u32;
            guest.put_descriptors(DESCRIPTORS, 0, &[Desc(TABLE, len, INDIRECT, 0)]);
        } else {
            guest.put_descriptors(DESCRIPTORS, 0, &chain);
        }
        guest.publish(0);
        let before = guest.bytes(0, MEMORY as usize);
        guest.kick();
        guest.wait(|guest| guest.get16(USED + 2) != guest.used || guest.status() == 0x4f);
        guest.device.pause();
        let after = guest.bytes(0, MEMORY as usize);
        let may = may_change(&chain);
        let harm = (0..MEMORY as usize).find(|&at| before[at] != after[at] && !may[at]);
        assert_eq!(harm, None, "seed {seed}, round {round}: {chain:x?}");
        if guest.status() == 0x4f {
            guest.device.resume();
            guest.initialise(features);
            answered[0] += 1;
        } else {
            let (head, len) = guest.take_used();
            let room: u64 =
                chain.iter().filter(|desc| desc.2 & WRITE != 0).map(|desc| u64::from(desc.1)).sum();
            assert!(head == 0 && u64::from(len) <= room, "seed {seed}, round {round}: {len} {chain:x?}");
            guest.device.resume();
            answered[1] += 1;
        }
    }
    assert!(answered.iter().all(|&count| count > 20), "{answered:?}");
    assert_eq!(guest.read(0, &[(DATA, 512)]).0, OK);
    assert_eq!(guest.image().len(), IMAGE);
}
