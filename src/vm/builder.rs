//! Putting a machine together.
//!
//! The order is KVM's: interrupt chips before vCPUs, CPUID before the rest of a vCPU's state; and devices
//! before the disks' queues, memory before all.

use crate::block::drive::Drive;
use crate::devices;
use crate::devices::acpi::pm::{self, PowerManagement};
use crate::devices::acpi::tables::Platform;
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::events::VmEvents;
use crate::devices::interrupts::Interrupts;
use crate::devices::legacy::cmos::{self, Cmos};
use crate::devices::legacy::i8042::{self, I8042};
use crate::devices::legacy::serial::{self, Line, Uart};
use crate::devices::pci::{PciRoot, PciWindows};
use crate::devices::virtio::blk::{self, BlkOptions};
use crate::vm::boot::bios::{self, Bios};
use crate::vm::boot::{Boot, linux};
use crate::vm::console::Console;
use crate::vm::disk_errors::DiskErrors;
use crate::vm::layout::{self, Layout};
use crate::vm::machine::{Disk, Machine, Status};
use crate::vm::memory::{self, GuestMemory};
use crate::vm::run_clock::RunClock;
use crate::vm::run_state::RunState;
use crate::vm::vcpu::{Shared, Vcpu};
use crate::vm::vcpu_state::PowerOnState;
use crate::vm::{Error, Result, cpuid, irqchip, kick};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The least memory that a machine can have, in bytes: the real-mode world and a little.
pub const MIN_MEMORY: u64 = 2 << 20;

/// A size that this host can run. Nothing of the machine exists yet, so an impossible wish costs nothing.
pub struct Plan {
    kvm: Kvm,
    supported: CpuId,
    layout: Layout,
    vcpus: u8,
}

/// A disk to plug in.
pub struct DiskConfig {
    /// The image.
    pub drive: Arc<Drive>,
    /// What the guest sees of it.
    pub options: BlkOptions,
}

/// What a machine boots.
pub enum BootSource {
    /// A kernel.
    Linux(linux::Files),
    /// The first disk's boot sector.
    Disk,
}

/// The host's KVM; where there is none, or the user may not use it, the error says what to do.
fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(no_kvm)?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        version => Err(Error::new(format!("/dev/kvm speaks version {version} of its interface, not 12"))),
    }
}

fn no_kvm(error: kvm_ioctls::Error) -> Error {
    match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::new("there is no /dev/kvm on this host")
            .remedy("load the module kvm_intel or kvm_amd, and enable virtualization in the firmware setup"),
        libc::EACCES | libc::EPERM => Error::new("no permission to open /dev/kvm")
            .remedy("add yourself to the group kvm (sudo usermod -aG kvm $USER) and log in again"),
        _ => Error::kvm("be opened at /dev/kvm", error),
    }
}

impl Plan {
    /// Plans `memory` bytes of RAM (a multiple of 4096) and `vcpus` vCPUs.
    ///
    /// # Errors
    /// When there is no KVM, or the host cannot run so much.
    pub fn new(memory: u64, vcpus: u8) -> Result<Plan> {
        let kvm = open_kvm()?;
        let most = kvm.get_max_vcpus().min(usize::from(cpuid::MAX_VCPUS));
        if vcpus == 0 || usize::from(vcpus) > most {
            return Err(Error::new(format!("this host runs 1 to {most} vCPUs a guest, not {vcpus}")));
        }
        if memory < MIN_MEMORY {
            return Err(Error::new("a guest needs at least 2 MiB of memory").remedy("give it more with -m"));
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| Error::kvm("tell its CPU features", error))?;
        let bits = cpuid::address_bits(&supported);
        let layout = Layout::new(memory, bits).ok_or_else(|| {
            Error::new(format!("the guest's memory does not fit into {bits} address bits"))
                .remedy("give it less with -m")
        })?;
        Ok(Plan { kvm, supported, layout, vcpus })
    }

    /// Builds a machine that is ready to start. The disks come in the order of their slots.
    ///
    /// # Errors
    /// What KVM, the host or a boot file says.
    pub fn build(self, disks: Vec<DiskConfig>, boot: BootSource, console: &Arc<Console>) -> Result<Machine> {
        kick::install().map_err(host("install a signal handler"))?;
        let vm = self.kvm.create_vm().map_err(|error| Error::kvm("create a virtual machine", error))?;
        let vm = Arc::new(vm);
        let memory = memory::allocate(&self.layout)?;
        memory::register(&vm, &memory)?;
        prepare_vm(&vm)?;
        let vcpus = self.create_vcpus(&vm)?;
        let run_state = Arc::new(RunState::new().map_err(host("create an eventfd"))?);
        Parts { vm, memory, layout: self.layout, run_state }.assemble(vcpus, disks, boot, console)
    }

    fn create_vcpus(&self, vm: &VmFd) -> Result<Vec<Vcpu>> {
        let tsc_deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        let create = |index| {
            let fd = vm.create_vcpu(u64::from(index)).map_err(|error| Error::kvm("create a vCPU", error))?;
            let cpuid = cpuid::for_vcpu(&self.supported, index, self.vcpus, tsc_deadline);
            fd.set_cpuid2(&cpuid).map_err(|error| Error::kvm("take the CPU features", error))?;
            let power_on = PowerOnState::read(&self.kvm, &fd)?;
            power_on.restore(&fd)?;
            Ok(Vcpu::new(fd, power_on, cpuid))
        };
        (0..self.vcpus).map(create).collect()
    }
}

fn prepare_vm(vm: &VmFd) -> Result<()> {
    // Only CPUs without unrestricted guest support need the two; elsewhere KVM may not know them.
    let _ = vm.set_identity_map_address(layout::KVM_IDENTITY_MAP);
    let _ = vm.set_tss_address(layout::KVM_TSS as usize);
    irqchip::create(vm)
}

/// What the devices are built upon.
struct Parts {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
    layout: Layout,
    run_state: Arc<RunState>,
}

impl Parts {
    fn assemble(
        self,
        vcpus: Vec<Vcpu>,
        disks: Vec<DiskConfig>,
        boot: BootSource,
        console: &Arc<Console>,
    ) -> Result<Machine> {
        let (ports, mmio) = (Bus::new(), Bus::new());
        let uart = self.add_uart(&ports, console)?;
        let power = self.add_power(&ports)?;
        let cmos = self.add_clock(&ports)?;
        let (pci, disks) = self.add_pci(&ports, &mmio, disks)?;
        let boot = self.boot(boot, &disks, console)?;
        let errors = Arc::new(DiskErrors::new(self.run_state.clone()));
        for disk in &disks {
            let (of_requests, of_trays) = (errors.clone(), errors.clone());
            disk.drive.listen_for_errors(Box::new(move |error| of_requests.push(error)));
            disk.drive.listen_for_tray(Box::new(move |drive, open| of_trays.tray_moved(drive, open)));
            if disk.drive.tray().is_some() {
                let device = disk.device.clone();
                disk.drive.watch_medium(move || device.config_changed())?;
            }
        }
        let platform = self.platform(vcpus.len() as u8);
        let bios_port = boot.port();
        let boot = Mutex::new(boot);
        let shared = Shared { ports, mmio, run_state: self.run_state, boot, bios_port };
        Ok(Machine {
            chips: irqchip::PowerOnState::read(&self.vm),
            vm: self.vm,
            memory: self.memory,
            platform,
            vcpus,
            shared: Arc::new(shared),
            pci,
            uart,
            power,
            cmos,
            disks,
            status: Status::Paused,
            layout: self.layout,
            errors,
            events: Vec::new(),
            reset_by_user: false,
            clock: RunClock::default(),
            start_from: None,
            begun: false,
            broken: false,
        })
    }

    fn add_uart(&self, ports: &Bus, console: &Arc<Console>) -> Result<Arc<Mutex<Uart>>> {
        let irq = EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?;
        self.vm
            .register_irqfd(&irq, serial::IRQ)
            .map_err(|error| Error::kvm("connect the serial port's interrupt", error))?;
        let uart = Arc::new(Mutex::new(Uart::new(console.clone(), irq)));
        insert(ports, "serial", serial::COM1, serial::PORTS, uart.clone())?;
        let listener = uart.clone();
        console.listen(Arc::new(move || {
            listener.lock().unwrap_or_else(PoisonError::into_inner).input_arrived();
        }));
        Ok(uart)
    }

    /// Power-off and reset: ACPI's registers and the keyboard controller.
    fn add_power(&self, ports: &Bus) -> Result<Arc<Mutex<PowerManagement>>> {
        let keyboard = Arc::new(Mutex::new(I8042::new(self.run_state.clone())));
        insert(ports, "i8042", i8042::BASE, i8042::PORTS, keyboard)?;
        let power = Arc::new(Mutex::new(PowerManagement::new(self.run_state.clone(), self.sci())));
        insert(ports, "acpi-pm", pm::BASE.into(), pm::PORTS.into(), power.clone())?;
        Ok(power)
    }

    /// The line of the system control interrupt.
    fn sci(&self) -> pm::Line {
        let vm = self.vm.clone();
        // KVM refuses a line that its chips do not have, and this one they have.
        Box::new(move |level| {
            let _ = vm.set_irq_line(u32::from(pm::SCI), level);
        })
    }

    fn add_clock(&self, ports: &Bus) -> Result<Arc<Mutex<Cmos>>> {
        let clock = Arc::new(Mutex::new(Cmos::new(self.layout.low_ram(), self.layout.high_ram())));
        insert(ports, "cmos", cmos::BASE, cmos::PORTS, clock.clone())?;
        Ok(clock)
    }

    fn add_pci(
        &self,
        ports: &Bus,
        mmio: &Bus,
        disks: Vec<DiskConfig>,
    ) -> Result<(Arc<Mutex<PciRoot>>, Vec<Disk>)> {
        let events: Arc<dyn VmEvents> = self.vm.clone();
        let interrupts = Interrupts::new(events.clone()).map_err(device)?;
        let root = PciRoot::new(PciWindows {
            mmio32: layout::PCI_MMIO32,
            mmio64: self.layout.mmio64.clone(),
            ecam: layout::PCI_ECAM.start,
        });
        PciRoot::attach(&root, ports, mmio).map_err(device)?;
        let mut plugged = Vec::new();
        for DiskConfig { drive, options } in disks {
            let memory = GuestMemory::clone(&self.memory);
            let (disk, handle) = blk::pci_disk(drive.clone(), memory, &interrupts, events.clone(), &options)
                .map_err(device)?;
            root.lock().unwrap_or_else(PoisonError::into_inner).add(disk).map_err(device)?;
            plugged.push(Disk { drive, device: handle });
        }
        Ok((root, plugged))
    }

    fn boot(&self, source: BootSource, disks: &[Disk], console: &Arc<Console>) -> Result<Boot> {
        match source {
            BootSource::Disk => {
                let drives = disks.iter().map(|disk| disk.drive.clone() as Arc<dyn bios::Disk>).collect();
                Ok(Boot::Bios(Bios::new(self.memory.clone(), self.layout.e820(), drives, console.clone())))
            }
            BootSource::Linux(files) => {
                let (memory, layout) = (self.memory.clone(), self.layout.clone());
                Ok(Boot::Linux(linux::LinuxBoot::open(&files, memory, layout, layout::ACPI_START)?))
            }
        }
    }

    fn platform(&self, vcpus: u8) -> Platform {
        Platform {
            vcpus,
            local_apic: layout::LAPIC as u32,
            io_apic: layout::IOAPIC as u32,
            ecam: layout::PCI_ECAM,
            mmio32: layout::PCI_MMIO32,
            mmio64: self.layout.mmio64.clone(),
        }
    }
}

impl Line for Console {
    fn transmit(&self, bytes: &[u8]) {
        self.write_stamped(bytes);
    }

    fn receive(&self) -> Option<u8> {
        self.pop_input()
    }
}

fn insert<D: BusDevice + 'static>(
    bus: &Bus,
    name: &'static str,
    base: u64,
    len: u64,
    device_: Arc<Mutex<D>>,
) -> Result<()> {
    bus.insert(name, base, len, device_).map_err(device)
}

fn device(error: devices::Error) -> Error {
    match error {
        devices::Error::Block(error) => error.into(),
        other => Error::new(other.to_string()),
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::new(format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_and_a_forbidden_kvm_come_with_a_remedy() {
        let said = |errno| no_kvm(kvm_ioctls::Error::new(errno)).to_string();
        assert!(said(libc::ENOENT).contains("no /dev/kvm") && said(libc::ENOENT).contains("kvm_intel"));
        assert!(said(libc::EACCES).contains("permission") && said(libc::EACCES).contains("group kvm"));
        assert!(said(libc::EMFILE).contains("Too many open files"));
    }
}
