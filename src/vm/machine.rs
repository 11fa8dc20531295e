//! The machine: everything that belongs to one guest, and what can be done to it as a whole.
//!
//! All methods belong to the main thread. Those that change the guest's state first pause it: vCPUs parked,
//! then disks idle; they resume in the opposite order.

use crate::block::drive::Drive;
use crate::devices::acpi::pm::PowerManagement;
use crate::devices::acpi::tables;
use crate::devices::legacy::cmos::Cmos;
use crate::devices::legacy::serial::Uart;
use crate::devices::pci::PciRoot;
use crate::devices::virtio::blk::BlkHandle;
use crate::vm::layout::ACPI_START;
use crate::vm::memory::GuestMemory;
use crate::vm::run_clock::RunClock;
use crate::vm::run_state::{Request, RunState};
use crate::vm::vcpu::{Shared, Vcpu};
use crate::vm::{Error, Result, irqchip};
use kvm_ioctls::VmFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Running,
    /// Stopped by the user.
    Paused,
}

/// A disk of the machine, as the user knows it.
pub struct Disk {
    /// The image. Its id is the disk's name.
    pub drive: Arc<Drive>,
    /// The device that shows it to the guest.
    pub(super) device: BlkHandle,
}

impl Disk {
    /// Changes the size of the image, and tells the guest.
    ///
    /// # Errors
    /// When the image cannot have that size.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.drive.resize(size)?;
        self.device.config_changed();
        Ok(())
    }
}

/// A machine, with its devices and images.
pub struct Machine {
    pub(super) vm: Arc<VmFd>,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) platform: tables::Platform,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) shared: Arc<Shared>,
    pub(super) chips: irqchip::PowerOnState,
    pub(super) pci: Arc<Mutex<PciRoot>>,
    pub(super) uart: Arc<Mutex<Uart>>,
    pub(super) power: Arc<Mutex<PowerManagement>>,
    pub(super) cmos: Arc<Mutex<Cmos>>,
    pub(super) disks: Vec<Disk>,
    pub(super) status: Status,
    /// How long the guest has run.
    pub(super) clock: RunClock,
    /// The snapshot that the guest goes on from instead of booting.
    pub(super) start_from: Option<String>,
}

impl Machine {
    /// Boots the guest, or goes on from a snapshot.
    ///
    /// # Errors
    /// When the boot image cannot be read or does not fit, or the host refuses threads.
    pub fn start(&mut self) -> Result<()> {
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            vcpu.start(index, self.shared.clone())
                .map_err(|error| Error::new(format!("cannot start a vCPU's thread: {error}")))?;
        }
        self.recover_disks()?;
        match self.start_from.take() {
            Some(snapshot) => self.load_snapshot(&snapshot)?,
            None => self.load()?,
        }
        self.status = Status::Running;
        self.resume();
        Ok(())
    }

    /// Whether the guest runs.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The disks, in the order of their slots.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Readable when the guest wants something of the machine: see [`Machine::take_request`].
    pub fn requested(&self) -> &EventFd {
        self.run_state().requested()
    }

    /// What the guest wants, if anything. It stands still until that is done.
    pub fn take_request(&mut self) -> Option<Request> {
        self.run_state().take_request()
    }

    /// Asks for a reset, as the guest can: it happens when the request is taken.
    pub fn request_reset(&self) {
        self.run_state().request(Request::Reset);
    }

    /// Stops the guest and writes back the caches of its disks. Does nothing to a stopped one.
    ///
    /// # Errors
    /// When a disk cannot be written back; the guest is stopped all the same.
    pub fn stop(&mut self) -> Result<()> {
        if self.status == Status::Paused {
            return Ok(());
        }
        self.status = Status::Paused;
        self.pause();
        self.flush()
    }

    /// Lets the guest run on. Does nothing to a running one.
    pub fn cont(&mut self) {
        if self.status == Status::Paused {
            self.status = Status::Running;
            self.resume();
        }
    }

    /// Resets everything to power-on and boots again. A stopped machine stays stopped.
    ///
    /// # Errors
    /// When the boot image cannot be loaded again, and what KVM says. The guest cannot go on then.
    pub fn reset(&mut self) -> Result<()> {
        self.pause();
        // What another vCPU asked for at the same time is this very reset.
        self.run_state().forget_reset();
        lock(&self.pci).reset();
        lock(&self.power).reset();
        lock(&self.uart)
            .reset()
            .map_err(|error| Error::new(format!("cannot reset the serial port: {error}")))?;
        self.chips.restore(&self.vm)?;
        self.vcpus.iter().try_for_each(Vcpu::reset)?;
        self.load()?;
        if self.status == Status::Running {
            self.resume();
        }
        Ok(())
    }

    /// Ends the guest and closes its disks, which writes back what they hold.
    ///
    /// # Errors
    /// The first disk's that could not be written back; the others are closed all the same.
    pub fn close(&mut self) -> Result<()> {
        self.pause();
        self.run_state().end();
        self.vcpus.iter_mut().for_each(Vcpu::join);
        let results: Vec<_> = self.disks.iter().map(|disk| disk.drive.close()).collect();
        Ok(results.into_iter().collect::<std::result::Result<(), _>>()?)
    }

    pub(super) fn run_state(&self) -> &RunState {
        &self.shared.run_state
    }

    /// Tables and boot image into memory, the first vCPU to its entry.
    fn load(&self) -> Result<()> {
        let tables = tables::build(&self.platform, ACPI_START as u32);
        self.memory
            .write_slice(&tables, GuestAddress(ACPI_START))
            .map_err(|_| Error::new("the guest has too little memory").remedy("give it more with -m"))?;
        let Some(boot_vcpu) = self.vcpus.first() else { return Ok(()) };
        lock(&self.shared.boot).prepare(&boot_vcpu.fd())
    }

    /// Parks the vCPUs and waits until the devices have no request in flight.
    pub(super) fn pause(&mut self) {
        let started = self.vcpus.iter().filter(|vcpu| vcpu.started()).count();
        self.run_state().pause(started, || self.vcpus.iter().for_each(Vcpu::kick));
        lock(&self.pci).pause();
        self.clock.stop();
    }

    /// Lets devices and vCPUs go on.
    pub(super) fn resume(&mut self) {
        lock(&self.pci).resume();
        self.clock.start();
        for vcpu in &self.vcpus {
            // Tells the guest that it was stopped, so that its watchdogs stay calm. Refused where the guest
            // does not use KVM's clock.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        self.run_state().resume();
    }

    fn flush(&self) -> Result<()> {
        let flush = |disk: &Disk| disk.drive.call(|local| async move { local.flush().await }).flatten();
        // All of them, whatever becomes of the first.
        let results: Vec<_> = self.disks.iter().map(flush).collect();
        Ok(results.into_iter().collect::<std::result::Result<(), _>>()?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Also when the machine never started: its threads hold what it is made of.
        self.run_state().end();
        self.vcpus.iter().for_each(Vcpu::kick);
        self.vcpus.iter_mut().for_each(Vcpu::join);
    }
}

/// A panic of another thread leaves registers that a guest could have written: the state stays usable.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
