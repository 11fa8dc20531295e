//! The smallest machine that the firmware runs on, for tests: one vCPU, RAM, KVM's interrupt controllers and
//! timer, a console that is recorded, disks in memory.

use super::bios::{Action, Bios, Disk, PORT, reset_registers};
use crate::block::{self, Error, Kind};
use crate::vm::console::Console;
use crate::vm::layout::Layout;
use crate::vm::memory::{self, GuestMemory};
use kvm_bindings::kvm_pit_config;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// Memory of the test machine.
pub(super) const MEMORY: u64 = 64 << 20;
/// The keyboard controller's command port, and the command that pulls the reset line.
const RESET: (u16, u8) = (0x64, 0xfe);

/// A disk in memory.
pub(super) struct MemoryDisk {
    pub(super) bytes: Mutex<Vec<u8>>,
    pub(super) read_only: bool,
}

impl MemoryDisk {
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> Arc<MemoryDisk> {
        Arc::new(MemoryDisk { bytes: Mutex::new(bytes.into()), read_only: false })
    }

    /// A disk that begins with `boot_sector` and goes on with bytes that differ from sector to sector.
    pub(super) fn patterned(boot_sector: &[u8], sectors: usize) -> Arc<MemoryDisk> {
        let mut bytes: Vec<u8> = (0..sectors * 512).map(|at| (at * 7 + at / 512 * 13) as u8).collect();
        bytes[..boot_sector.len()].copy_from_slice(boot_sector);
        MemoryDisk::new(bytes)
    }
}

impl Disk for MemoryDisk {
    fn id(&self) -> &str {
        "hda"
    }

    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, len: usize) -> block::Result<Vec<u8>> {
        let start = offset as usize;
        let bytes = self.bytes.lock().unwrap();
        bytes.get(start..start + len).map(<[u8]>::to_vec).ok_or(Error::new(Kind::OutOfRange, "range"))
    }

    fn write(&self, offset: u64, from: Vec<u8>) -> block::Result<()> {
        let start = offset as usize;
        self.bytes.lock().unwrap()[start..start + from.len()].copy_from_slice(&from);
        Ok(())
    }

    fn flush(&self) -> block::Result<()> {
        Ok(())
    }
}

/// Why a guest has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    PowerOff,
    Reset,
    /// The condition of [`Machine::run_until`] holds.
    Reached,
}

#[derive(Clone, Default)]
pub(super) struct Record(pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for Record {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The machine, at the reset vector.
pub(super) struct Machine {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Arc<GuestMemory>,
    pub(super) layout: Layout,
    pub(super) console: Arc<Console>,
    bios: Bios,
    record: Record,
}

impl Machine {
    pub(super) fn new(disks: Vec<Arc<MemoryDisk>>) -> Machine {
        Machine::with_disks(disks.into_iter().map(|disk| disk as Arc<dyn Disk>).collect())
    }

    pub(super) fn with_disks(disks: Vec<Arc<dyn Disk>>) -> Machine {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.set_tss_address(crate::vm::layout::KVM_TSS as usize).unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_pit_config::default()).unwrap();
        let layout = Layout::new(MEMORY, 36).unwrap();
        let memory = memory::allocate(&layout).unwrap();
        memory::register(&vm, &memory).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let record = Record::default();
        let console = Console::new(record.clone()).unwrap();
        let bios = Bios::new(memory.clone(), layout.e820(), disks, console.clone());
        bios.load().unwrap();
        reset_registers(&vcpu).unwrap();
        Machine { vcpu, _vm: vm, memory, layout, console, bios, record }
    }

    /// Runs the guest until it switches itself off or resets the machine.
    pub(super) fn run(&mut self) -> Ended {
        self.run_until(|_| false)
    }

    /// Runs the guest until it ends, or `reached` holds for its output after a call of the BIOS.
    pub(super) fn run_until(&mut self, reached: impl Fn(&str) -> bool) -> Ended {
        loop {
            let exit = match self.vcpu.run() {
                // The kernel interrupts a thread whose io_uring has completions to tell of.
                Err(error) if error.errno() == libc::EINTR => continue,
                exit => exit.unwrap(),
            };
            match exit {
                VcpuExit::IoOut(PORT, _) => {
                    if self.bios.call(&mut self.vcpu).unwrap() == Action::PowerOff {
                        return Ended::PowerOff;
                    }
                    if reached(&self.output()) {
                        return Ended::Reached;
                    }
                }
                VcpuExit::IoOut(port, bytes) if (port, bytes[0]) == RESET => return Ended::Reset,
                VcpuExit::IoOut(..) => {}
                VcpuExit::IoIn(_, bytes) => bytes.fill(0),
                exit => panic!(
                    "{exit:?}, output so far: {}",
                    String::from_utf8_lossy(&self.record.0.lock().unwrap())
                ),
            }
        }
    }

    /// The guest's memory.
    pub(super) fn memory(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// What the guest has shown so far.
    pub(super) fn output(&self) -> String {
        self.console.flush();
        String::from_utf8(self.record.0.lock().unwrap().clone()).unwrap()
    }
}

/// Defines a function `$name` that returns a boot sector, assembled from `$source` for address 7C00h. Behind its
/// last instruction the guest switches itself off. Labels must be numbers.
macro_rules! boot_sector {
    ($name:ident, $source:literal) => {
        core::arch::global_asm!(
            concat!(".pushsection .rodata.test_", stringify!($name), ", \"a\""),
            ".code16",
            concat!(".globl test_", stringify!($name)),
            concat!("test_", stringify!($name), ":"),
            $source,
            "mov $0x5307, %ax",
            "mov $1, %bx",
            "mov $3, %cx",
            "int $0x15",
            concat!(".org test_", stringify!($name), " + 510"),
            ".word 0xaa55",
            ".code64",
            ".popsection",
            options(att_syntax)
        );
        fn $name() -> [u8; 512] {
            unsafe extern "C" {
                #[link_name = concat!("test_", stringify!($name))]
                static SECTOR: [u8; 512];
            }
            // SAFETY: 512 bytes of constant data, defined just above.
            unsafe { SECTOR }
        }
    };
}
pub(super) use boot_sector;
