//! The transport, against the specification's layout, with a device that only counts.

use super::*;
use crate::devices::events::fake::FakeVm;
use std::sync::{Mutex, PoisonError};
use vm_memory::GuestAddress;

const BASE: u64 = 0xc000_0000;

/// What the transport told the device.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Start { queues: Vec<u16>, features: u64 },
    Stop,
}

/// Type 2, two queues, one feature (bit 9), a configuration space of "config".
struct Toy {
    running: Vec<StartedQueue>,
    log: Arc<Mutex<Vec<Told>>>,
}

impl VirtioDevice for Toy {
    fn device_type(&self) -> u16 {
        2
    }
    fn pci_class(&self) -> u32 {
        0x01_00_00
    }
    fn features(&self) -> u64 {
        1 << 9
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let all = b"config".iter().chain(std::iter::repeat(&0));
        data.iter_mut().zip(all.skip(offset as usize)).for_each(|(to, from)| *to = *from);
    }
    fn start(&mut self, queues: Vec<StartedQueue>, features: u64, _: &Arc<DriverLink>) -> Result<()> {
        let numbers = queues.iter().map(|queue| queue.index).collect();
        self.running.extend(queues);
        self.log.lock().unwrap().push(Told::Start { queues: numbers, features });
        Ok(())
    }
    fn stop(&mut self) -> Vec<StartedQueue> {
        if !self.running.is_empty() {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).push(Told::Stop);
        }
        self.running.drain(..).collect()
    }
}

struct Driver {
    device: VirtioPci,
    vm: Arc<FakeVm>,
    log: Arc<Mutex<Vec<Told>>>,
}

impl Driver {
    fn new() -> Driver {
        let vm = FakeVm::new();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let interrupts = Interrupts::new(vm.clone()).unwrap();
        let log = Arc::<Mutex<Vec<Told>>>::default();
        let toy = Toy { running: Vec::new(), log: log.clone() };
        let device = VirtioPci::new(Box::new(toy), memory, &interrupts, vm.clone()).unwrap();
        let mut driver = Driver { device, vm, log };
        driver.config_write(0x10, BASE, 8);
        driver.config_write(4, 6, 2);
        driver
    }

    fn config_write(&mut self, offset: usize, value: u64, len: usize) {
        for at in (0..len).step_by(4) {
            let bytes = &value.to_le_bytes()[at..len.min(at + 4)];
            self.device.write_config(offset + at, bytes);
        }
    }

    fn config(&mut self, offset: usize, len: usize) -> u32 {
        let mut data = [0; 4];
        self.device.read_config(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    fn load(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.read_bar(0, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn store(&mut self, offset: u64, value: u64, len: usize) {
        self.device.write_bar(0, offset, &value.to_le_bytes()[..len]);
    }

    fn status(&mut self) -> u64 {
        self.load(0x14, 1)
    }

    /// Reset, acknowledge, driver, features; returns the status.
    fn negotiate(&mut self, features: u64) -> u64 {
        self.store(0x14, 0, 1);
        self.store(0x14, 1, 1);
        self.store(0x14, 3, 1);
        for half in 0..2 {
            self.store(0x08, half, 4);
            self.store(0x0c, features >> (32 * half) & 0xffff_ffff, 4);
        }
        self.store(0x14, 0xb, 1);
        self.status()
    }

    fn set_up_queue(&mut self, queue: u64, size: u64, areas: [u64; 3]) -> u64 {
        self.store(0x16, queue, 2);
        self.store(0x18, size, 2);
        for (offset, area) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
            self.store(offset, area & 0xffff_ffff, 4);
            self.store(offset + 4, area >> 32, 4);
        }
        self.store(0x1c, 1, 2);
        self.load(0x1c, 2)
    }

    fn log(&self) -> Vec<Told> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

const AREAS: [u64; 3] = [0x1000, 0x2000, 0x3000];

#[test]
fn the_capabilities_are_where_and_what_the_specification_says() {
    let mut driver = Driver::new();
    assert_eq!(driver.config(0, 4), 0x1042_1af4);
    assert_eq!(driver.config(8, 4), 0x01_00_00_01);
    assert_eq!(driver.config(6, 2) & 0x10, 0x10, "the status says that there are capabilities");
    assert_eq!(driver.config(0x3d, 1), 0, "no interrupt pin");

    let mut found = Vec::new();
    let mut at = driver.config(0x34, 1) as usize;
    while at != 0 {
        assert!(at >= 0x40 && at.is_multiple_of(4), "{at:#x}");
        match driver.config(at, 1) {
            9 => {
                let len = driver.config(at + 2, 1);
                let kind = driver.config(at + 3, 1);
                let region = [4, 8, 12].map(|field| driver.config(at + field, 4));
                let more = if len > 16 && kind != 5 { Some(driver.config(at + 16, 4)) } else { None };
                found.push((kind, len, region, more));
            }
            0x11 => {
                assert_eq!(driver.config(at + 2, 2), 2, "three vectors, disabled");
                assert_eq!(driver.config(at + 4, 4), 0x4000);
                assert_eq!(driver.config(at + 8, 4), 0x5000);
            }
            other => panic!("capability {other:#x}"),
        }
        at = driver.config(at + 1, 1) as usize;
    }
    found.sort_unstable();
    let region = |offset| [0, offset, 0x1000];
    assert_eq!(
        found,
        [
            (1, 16, region(0), None),
            (2, 20, region(0x3000), Some(4)),
            (3, 16, region(0x1000), None),
            (4, 16, region(0x2000), None),
            (5, 20, [0; 3], None),
        ]
    );
}

#[test]
fn a_driver_gets_the_features_that_both_sides_have_or_none() {
    let mut driver = Driver::new();
    let offered = (0..2).fold(0, |features, half| {
        driver.store(0, half, 4);
        features | driver.load(4, 4) << (32 * half)
    });
    assert_eq!(offered, 1 << 32 | 1 << 29 | 1 << 28 | 1 << 9);
    driver.store(0, 2, 4);
    assert_eq!(driver.load(4, 4), 0);
    assert_eq!(driver.negotiate(1 << 32), 0xb);
    assert_eq!(driver.negotiate(1 << 9), 3, "VERSION_1 is missing");
    assert_eq!(driver.negotiate(1 << 32 | 1 << 10), 3, "bit 10 was not offered");
    driver.store(0x14, 0xf, 1);
    assert_eq!(driver.status(), 3, "no DRIVER_OK without FEATURES_OK");
    assert_eq!(driver.log(), []);
}

#[test]
fn features_cannot_change_once_agreed_upon() {
    let mut driver = Driver::new();
    driver.negotiate(1 << 32);
    driver.store(0x08, 0, 4);
    driver.store(0x0c, 1 << 9, 4);
    assert_eq!(driver.load(0x0c, 4), 0);
}

#[test]
fn enabled_queues_start_with_driver_ok_and_stop_with_reset() {
    let mut driver = Driver::new();
    driver.negotiate(1 << 32);
    assert_eq!(driver.load(0x12, 2), 2);
    assert_eq!(driver.set_up_queue(1, 64, AREAS), 1);
    assert_eq!(driver.load(0x1e, 2), 1);
    driver.store(0x14, 0xf, 1);
    assert_eq!(driver.status(), 0xf);
    assert_eq!(driver.log(), [Told::Start { queues: vec![1], features: 1 << 32 }]);
    driver.store(0x14, 0xf, 1);
    assert_eq!(driver.log(), [], "only once");
    driver.store(0x14, 0, 1);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.log(), [Told::Stop]);
    driver.store(0x16, 1, 2);
    assert_eq!([driver.load(0x18, 2), driver.load(0x1c, 2), driver.load(0x20, 8)], [64, 0, 0]);
}

#[test]
fn a_queue_that_is_misaligned_or_outside_memory_is_refused() {
    let bad = [
        [0x1008, 0x2000, 0x3000],
        [0x1000, 0x2001, 0x3000],
        [0x1000, 0x2000, 0x3002],
        [0x10_0000, 0x2000, 0x3000],
        [0xf_ff00, 0x2000, 0x3000],
        [0x1000, 0xf_fffe, 0x3000],
        [0x1000, 0x2000, 0xffff_ffff_ffff_fffc],
        [0xffff_ffff_ffff_fff0, 0x2000, 0x3000],
        [0x1000, 0, 0x3000],
    ];
    for areas in bad {
        let mut driver = Driver::new();
        driver.negotiate(1 << 32);
        assert_eq!(driver.set_up_queue(0, 256, areas), 0, "{areas:x?}");
        assert_eq!(driver.status(), 0x4b, "needs a reset");
        assert_eq!(driver.negotiate(1 << 32), 0xb);
    }
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_maximum() {
    let mut driver = Driver::new();
    driver.negotiate(1 << 32);
    for (size, then) in [(0, 256), (3, 256), (512, 256), (128, 128), (1, 1), (256, 256)] {
        driver.store(0x18, size, 2);
        assert_eq!(driver.load(0x18, 2), then);
    }
    driver.store(0x16, 2, 2);
    assert_eq!(driver.load(0x18, 2), 0, "there is no third queue");
}

#[test]
fn registers_answer_only_to_their_own_width() {
    let mut driver = Driver::new();
    driver.negotiate(1 << 32);
    driver.store(0x20, 0x1122_3344_5566_7700, 8);
    assert_eq!(driver.load(0x20, 8), 0x1122_3344_5566_7700);
    for offset in 0..0x1000 {
        for len in 1..=8 {
            driver.load(offset, len);
            driver.store(0x100 + offset % 0xf00, u64::MAX, len);
        }
    }
    driver.store(0x14, 0, 2);
    assert_eq!(driver.status(), 0xb, "a word is no reset");
    assert_eq!(driver.load(0x2000, 8), u64::from_le_bytes(*b"config\0\0"));
    assert_eq!(driver.load(0x2004, 1), u64::from(b'i'));
}

#[test]
fn kicks_are_watched_for_wherever_the_bar_is() {
    let mut driver = Driver::new();
    assert_eq!(driver.vm.kick_addresses(), [BASE + 0x3000, BASE + 0x3004]);
    driver.config_write(0x10, BASE + 0x8000, 8);
    assert_eq!(driver.vm.kick_addresses(), [BASE + 0xb000, BASE + 0xb004]);
    driver.config_write(4, 4, 2);
    assert!(driver.vm.kick_addresses().is_empty());
    driver.config_write(4, 6, 2);
    assert_eq!(driver.vm.kick_addresses().len(), 2);
    driver.device.reset();
    assert!(driver.vm.kick_addresses().is_empty());
    driver.config_write(4, 2, 2);
    let vm = driver.vm.clone();
    drop(driver);
    assert!(vm.kick_addresses().is_empty());
    assert!(vm.irqfds.lock().unwrap().is_empty());
}

#[test]
fn a_kick_that_kvm_does_not_watch_for_is_passed_on() {
    let mut driver = Driver::new();
    driver.store(0x3004, 1, 2);
    driver.store(0x3ffc, 1, 2);
    assert_eq!(driver.device.kicks[1].event.read().unwrap(), 1);
    assert!(driver.device.kicks[0].event.read().is_err());
}

#[test]
fn the_configuration_space_is_a_window_on_the_bar() {
    let mut driver = Driver::new();
    let window = driver.device.window;
    let aim = |driver: &mut Driver, bar: u64, offset: u64, len: u64| {
        driver.config_write(window + 4, bar, 1);
        driver.config_write(window + 8, offset, 4);
        driver.config_write(window + 12, len, 4);
    };
    aim(&mut driver, 0, 0x12, 2);
    assert_eq!(driver.config(window + 16, 2), 2, "the number of queues");
    aim(&mut driver, 0, 0x14, 1);
    driver.config_write(window + 16, 1, 1);
    assert_eq!(driver.status(), 1);
    aim(&mut driver, 0, 0x2000, 4);
    assert_eq!(driver.config(window + 16, 4), u32::from_le_bytes(*b"conf"));
    for (bar, offset, len) in
        [(1, 0x14, 1), (0, 0x14, 3), (0, 0x14, 0), (0, 0x15, 2), (0, 0x8000, 1), (0, 0xffff_fffc, 4)]
    {
        aim(&mut driver, bar, offset, len);
        driver.config_write(window + 16, 0, 4);
        driver.config(window + 16, 4);
        assert_eq!(driver.status(), 1, "{bar} {offset:#x} {len}");
    }
}

/// Enables MSI-X and gives vector `n` the message 0xfee00000+n/0x30+n, all unmasked.
fn enable_msix(driver: &mut Driver, vectors: u64) {
    for vector in 0..vectors {
        let entry = 0x4000 + 16 * vector;
        driver.store(entry, 0xfee0_0000 + vector, 4);
        driver.store(entry + 4, 0, 4);
        driver.store(entry + 8, 0x30 + vector, 4);
        driver.store(entry + 12, 0, 4);
    }
    driver.config_write(0x42, 0x8000, 2);
}

#[test]
fn vectors_are_routed_when_enabled_and_hold_back_while_masked() {
    let mut driver = Driver::new();
    assert_eq!(driver.load(0x400c, 4), 1, "masked at power-on");
    enable_msix(&mut driver, 3);
    let expected: Vec<_> = (0..3).map(|n| (24 + n, 0xfee0_0000 + u64::from(n), 0x30 + n)).collect();
    assert_eq!(driver.vm.messages(), expected);

    driver.negotiate(1 << 32);
    driver.store(0x16, 1, 2);
    driver.store(0x1a, 2, 2);
    driver.store(0x10, 3, 2);
    assert_eq!(driver.load(0x10, 2), 0xffff, "there are only three vectors");
    let link = driver.device.link().clone();
    link.queue_used(1);
    link.queue_used(0);
    assert_eq!((driver.vm.raised(24), driver.vm.raised(25), driver.vm.raised(26)), (0, 0, 1));

    driver.store(0x402c, 1, 4);
    link.queue_used(1);
    assert_eq!((driver.vm.raised(26), driver.load(0x5000, 8)), (0, 4), "pending");
    driver.store(0x402c, 0, 4);
    assert_eq!((driver.vm.raised(26), driver.load(0x5000, 8)), (1, 0));

    driver.config_write(0x42, 0xc000, 2);
    link.queue_used(1);
    assert_eq!((driver.vm.raised(26), driver.load(0x5000, 1)), (0, 4), "the function is masked");
    driver.config_write(0x43, 0x80, 1);
    assert_eq!(driver.vm.raised(26), 1);
}

#[test]
fn a_change_of_the_configuration_interrupts_a_driver_that_is_ready() {
    let mut driver = Driver::new();
    enable_msix(&mut driver, 1);
    driver.negotiate(1 << 32);
    driver.store(0x10, 0, 2);
    let link = driver.device.link().clone();
    link.config_changed();
    assert_eq!((driver.load(0x15, 1), driver.vm.raised(24)), (1, 0));
    driver.store(0x14, 0xf, 1);
    link.config_changed();
    assert_eq!((driver.load(0x15, 1), driver.vm.raised(24)), (2, 1));
    assert_eq!((driver.load(0x1000, 1), driver.load(0x1000, 1)), (2, 0), "reading clears");
    link.break_device();
    link.break_device();
    assert_eq!((driver.status(), driver.vm.raised(24)), (0x4f, 1));
}

#[test]
fn a_paused_device_keeps_its_queues_until_resumed_or_reset() {
    let mut driver = Driver::new();
    driver.negotiate(1 << 32);
    driver.set_up_queue(0, 256, AREAS);
    driver.store(0x14, 0xf, 1);
    driver.log();
    driver.device.pause();
    driver.device.pause();
    assert_eq!(driver.log(), [Told::Stop]);
    driver.device.resume();
    driver.device.resume();
    assert_eq!(driver.log(), [Told::Start { queues: vec![0], features: 1 << 32 }]);
    driver.device.pause();
    driver.negotiate(1 << 32);
    driver.set_up_queue(1, 64, AREAS);
    driver.store(0x14, 0xf, 1);
    driver.device.resume();
    assert_eq!(driver.log(), [Told::Stop, Told::Start { queues: vec![1], features: 1 << 32 }]);
    driver.device.pause();
    driver.device.reset();
    driver.device.resume();
    assert_eq!(driver.log(), [Told::Stop]);
    assert_eq!((driver.status(), driver.config(4, 2), driver.config(0x42, 2)), (0, 0, 2));
}

/// A device whose driver is ready, with one queue and an interrupt that is pending.
fn at_work() -> Driver {
    let mut driver = Driver::new();
    driver.negotiate(1 << 32 | 1 << 9);
    driver.set_up_queue(1, 32, AREAS);
    driver.store(0x16, 1, 2);
    driver.store(0x1a, 2, 2);
    driver.store(0x14, 0xf, 1);
    driver.store(0x4000 + 2 * 16, 0xfee0_1000, 4);
    driver.device.link().queue_used(1);
    driver.device.pause();
    driver
}

fn body(section: &Section) -> serde_json::Value {
    serde_json::from_slice(&section.body).unwrap()
}

#[test]
fn a_state_moves_to_another_device_which_goes_on_with_its_queues() {
    let mut one = at_work();
    one.device.parked[0].ring.set_progress((7, 5));
    let saved = one.device.save("pci.1").unwrap();
    assert_eq!(body(&saved)["running"], serde_json::json!([[1, 7, 5]]));

    let mut other = Driver::new();
    other.device.pause();
    other.device.check(&saved).unwrap();
    other.device.load(&saved).unwrap();
    assert_eq!(body(&other.device.save("pci.1").unwrap()), body(&saved));
    assert!(other.log().is_empty(), "it is paused");
    other.device.resume();
    assert_eq!(other.log(), [Told::Start { queues: vec![1], features: 1 << 32 | 1 << 9 }]);
    assert_eq!(other.load(0x4000 + 2 * 16, 4), 0xfee0_1000);
    assert_eq!(other.load(0x5000, 1), 1 << 2, "the vector is pending still");

    // And back: what the device was before is gone.
    let fresh = Driver::new().device.save("pci.1").unwrap();
    other.device.pause();
    other.device.load(&fresh).unwrap();
    assert_eq!(body(&other.device.save("pci.1").unwrap()), body(&fresh));
}

#[test]
fn what_a_driver_writes_before_the_handshake_does_not_spoil_the_state() {
    let mut driver = Driver::new();
    for half in [0, 1] {
        driver.store(0x08, half, 4);
        driver.store(0x0c, 0xffff_ffff, 4);
    }
    driver.device.check(&driver.device.save("pci.1").unwrap()).unwrap();
}

#[test]
fn a_state_that_the_device_could_not_be_in_is_refused() {
    let saved = at_work().device.save("pci.1").unwrap();
    let driver = Driver::new();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut state = body(&saved);
        change(&mut state);
        let section = Section { body: serde_json::to_vec(&state).unwrap(), ..saved.clone() };
        assert_ne!(section, saved);
        driver.device.check(&section).unwrap_err().to_string()
    };
    refused(&|state| state["device_type"] = 3.into());
    refused(&|state| state["config"] = "AAAA".into());
    refused(&|state| state["msix"]["pending"] = serde_json::json!([true]));
    refused(&|state| state["link"]["vectors"] = serde_json::json!([1]));
    refused(&|state| state["common"]["queues"][1][0]["size"] = 3.into());
    refused(&|state| state["common"]["queues"][1][0]["size"] = 512.into());
    refused(&|state| state["common"]["queues"][1][0]["used"] = 0xfff_fff0.into());
    refused(&|state| state["running"] = serde_json::json!([[0, 0, 0]]));
    refused(&|state| state["running"] = serde_json::json!([[9, 0, 0]]));
    refused(&|state| state["running"] = serde_json::json!([[1, 0, 0], [1, 0, 0]]));
    let held = |queue: u16, count| vec![serde_json::json!([queue, {"head": 0, "buffers": []}]); count];
    refused(&|state| state["held"] = held(0, 1).into());
    refused(&|state| state["held"] = held(1, 257).into());
    refused(&|state| state["more"] = 1.into());
    let features = refused(&|state| state["common"]["driver_features"] = (1u64 << 32 | 1 << 40).into());
    assert!(features.contains("0x10000000000"), "{features}");
}
