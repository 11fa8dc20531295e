//! The machine: everything that belongs to one guest, and what can be done to it as a whole.
//!
//! All methods belong to the main thread. Those that change the guest's state first pause it: vCPUs parked,
//! then disks idle; they resume in the opposite order.

use crate::block;
use crate::block::drive::{DiskError, Drive, Local};
use crate::devices::acpi::pm::PowerManagement;
use crate::devices::acpi::tables;
use crate::devices::legacy::cmos::Cmos;
use crate::devices::legacy::serial::Uart;
use crate::devices::pci::PciRoot;
use crate::devices::virtio::blk::BlkHandle;
use crate::vm::disk_errors::DiskErrors;
use crate::vm::layout::ACPI_START;
use crate::vm::layout::Layout;
use crate::vm::memory::GuestMemory;
use crate::vm::run_clock::RunClock;
use crate::vm::run_state::{Request, RunState};
use crate::vm::vcpu::{Shared, Vcpu};
use crate::vm::{Error, Result, irqchip};
use kvm_ioctls::VmFd;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Running,
    /// Stopped by the user.
    Paused,
    /// Stopped because a request to a disk failed; it waits to be done again.
    IoError,
}

/// What has happened to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest was stopped.
    Stop,
    /// The guest runs again.
    Resume,
    /// The machine was reset.
    Reset {
        /// By the guest, not by a user.
        guest: bool,
    },
    /// The machine has gone back to a snapshot.
    Loaded,
    /// A request to a disk failed.
    DiskError(DiskError),
    /// The door of a drive moved.
    TrayMoved {
        /// The drive's name.
        drive: String,
        /// It is open now.
        open: bool,
    },
}

/// A disk of the machine, as the user knows it.
pub struct Disk {
    /// The image. Its id is the disk's name.
    pub drive: Arc<Drive>,
    /// The device that shows it to the guest.
    pub(super) device: BlkHandle,
}

impl Disk {
    /// Starts `work` on the drive's thread. `done` hears the result there, after the guest was told of another size or
    /// medium.
    ///
    /// # Errors
    /// Only when the drive is closed.
    pub fn start<F>(
        &self,
        work: impl FnOnce(Rc<Local>) -> F + Send + 'static,
        done: impl FnOnce(block::Result<()>) + Send + 'static,
    ) -> block::Result<()>
    where
        F: Future<Output = block::Result<()>> + 'static,
    {
        let device = self.device.clone();
        self.drive.spawn(move |local| {
            let (shown, task) = ((local.size(), local.medium()), work(local.clone()));
            async move {
                let result = task.await;
                if (local.size(), local.medium()) != shown {
                    device.config_changed();
                }
                done(result);
            }
        })
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
    pub(super) layout: Layout,
    pub(super) errors: Arc<DiskErrors>,
    /// What users have not been told yet, and when it happened.
    pub(super) events: Vec<(SystemTime, Event)>,
    /// The reset that was requested last was a user's wish.
    pub(super) reset_by_user: bool,
    /// How long the guest has run.
    pub(super) clock: RunClock,
    /// The snapshot that the guest goes on from instead of booting.
    pub(super) start_from: Option<String>,
    /// The guest has booted, or gone on from a snapshot.
    pub(super) begun: bool,
    /// It never runs again: its parts are of different moments.
    pub(super) broken: bool,
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
        self.begun = true;
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

    /// What has happened since the last call, and when.
    pub fn take_events(&mut self) -> Vec<(SystemTime, Event)> {
        self.hear_errors();
        std::mem::take(&mut self.events)
    }

    fn hear_errors(&mut self) {
        self.errors.take().into_iter().for_each(|event| self.note(event));
    }

    /// Something has happened now.
    pub(super) fn note(&mut self, event: Event) {
        self.events.push((SystemTime::now(), event));
    }

    /// Asks for a reset, as the guest can: it happens when the request is taken.
    pub fn request_reset(&mut self) {
        self.reset_by_user = true;
        self.run_state().request(Request::Reset);
    }

    /// Stops the guest and writes back the caches of its disks. Does nothing to a stopped one.
    ///
    /// # Errors
    /// When a disk cannot be written back; the guest is stopped all the same.
    pub fn stop(&mut self) -> Result<()> {
        if self.status != Status::Running {
            return Ok(());
        }
        self.status = Status::Paused;
        self.pause();
        self.note(Event::Stop);
        self.flush()
    }

    /// Stops the guest because a request to a disk has failed. Other requests are finished or fail like it.
    pub fn stop_for_disk_error(&mut self) {
        self.pause();
        self.hear_errors();
        if self.status == Status::Running {
            self.note(Event::Stop);
        }
        self.status = Status::IoError;
    }

    /// Lets the guest run on, with the requests that failed before all others. Does nothing to a running one.
    pub fn cont(&mut self) {
        if self.status != Status::Running && !self.broken {
            // What it is of is tried again now.
            self.run_state().forget(&Request::DiskError);
            self.status = Status::Running;
            self.note(Event::Resume);
            self.resume();
        }
    }

    /// Presses the power button: an operating system with ACPI shuts down.
    pub fn press_power_button(&mut self) {
        lock(&self.power).press_button();
    }

    /// Resets everything to power-on and boots again. A stopped machine stays stopped.
    ///
    /// # Errors
    /// When the boot image cannot be loaded again, and what KVM says. The guest cannot go on then.
    pub fn reset(&mut self) -> Result<()> {
        self.pause();
        // What another vCPU asked for at the same time is this very reset.
        self.run_state().forget(&Request::Reset);
        lock(&self.pci).reset();
        lock(&self.power).reset();
        lock(&self.uart)
            .reset()
            .map_err(|error| Error::new(format!("cannot reset the serial port: {error}")))?;
        self.chips.restore(&self.vm)?;
        self.vcpus.iter().try_for_each(Vcpu::reset)?;
        self.load()?;
        let guest = !std::mem::take(&mut self.reset_by_user);
        self.note(Event::Reset { guest });
        match self.status {
            Status::Running => self.resume(),
            // What failed was forgotten with everything else.
            Status::Paused | Status::IoError => self.status = Status::Paused,
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

    /// Sends a break to the guest's serial port.
    pub fn send_break(&mut self) {
        lock(&self.uart).receive_break();
    }

    /// The registers of all vCPUs, as text; a running guest is stopped for a moment.
    ///
    /// # Errors
    /// What KVM says.
    pub fn registers(&self) -> Result<Vec<String>> {
        let started = self.vcpus.iter().filter(|vcpu| vcpu.started()).count();
        self.run_state().pause(started, || self.vcpus.iter().for_each(Vcpu::kick));
        let registers = self.vcpus.iter().map(Vcpu::registers).collect();
        if self.status == Status::Running {
            self.run_state().resume();
        }
        registers
    }

    /// The PCI bus, for a look at its devices.
    pub fn pci(&self) -> MutexGuard<'_, PciRoot> {
        lock(&self.pci)
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
        let flush = |disk: &Disk| match disk.drive.call(|local| async move { local.flush().await }).flatten()
        {
            Err(error) if error.kind() == block::Kind::NoMedium => Ok(()),
            done => done,
        };
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
