//! The high-level BIOS: the guest's interrupt 10h finds a few bytes of `firmware/bios.S`, which write to
//! [`PORT`]; the vCPU's loop then calls [`Bios::call`], which serves the request here with the vCPU's
//! registers and the guest's memory.
//!
//! ```text
//!   guest: INT 13h ─▶ vector 13h ─▶ F000:F018  OUT PORT ─exit─▶ vCPU loop ─▶ Bios::call
//!                                                                              │ slot by CS:IP
//!          ◀─ IRET with CF, ZF ◀── JC (again?) ◀── registers, FLAGS image ◀── disk, video, …
//! ```
//!
//! Invariants:
//! * A call ends within 20 ms and the time of one disk request of 64 KiB. What must wait longer (a key, a
//!   delay) asks the guest to call again, so a vCPU can always be stopped between two calls.
//! * Registers and memory are hostile. A call touches the registers, the buffers that the guest named and the
//!   BIOS data area, and nothing else.
//! * What the BIOS remembers is in the guest's memory, as on a real machine, except where the terminal's
//!   cursor is and when a delay ends.

mod bda;
mod boot;
mod disk;
mod frame;
mod image;
mod keyboard;
mod memory;
mod power;
mod ram;
mod serial;
mod state;
mod time;
mod video;

#[cfg(test)]
mod tests;

pub use disk::Disk;
pub use image::{PORT, reset_registers};
pub use state::BiosV1;

use crate::vm::Result;
use crate::vm::console::Console;
use crate::vm::layout::Region;
use crate::vm::memory::GuestMemory;
use frame::Frame;
use image::Slot;
use ram::Ram;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a call may wait before the guest gets to run again.
const PAUSE: Duration = Duration::from_millis(20);

/// What the vCPU's loop does after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Runs the guest on.
    Continue,
    /// Ends the machine: the guest has switched itself off.
    PowerOff,
}

/// The BIOS of one machine. Called by the thread of vCPU 0.
pub struct Bios {
    ram: Ram,
    map: Vec<Region>,
    disks: Vec<Arc<dyn Disk>>,
    console: Arc<Console>,
    screen: video::Screen,
    delay_end: Option<Instant>,
}

impl Bios {
    /// A BIOS that shows `map` as memory map, `disks` as drives 80h, 81h, …, and `console` as keyboard and
    /// screen.
    pub fn new(
        memory: Arc<GuestMemory>,
        map: Vec<Region>,
        disks: Vec<Arc<dyn Disk>>,
        console: Arc<Console>,
    ) -> Bios {
        let screen = video::Screen::default();
        Bios { ram: Ram::new(memory), map, disks, console, screen, delay_end: None }
    }

    /// Puts the image into the guest's memory. The vCPU then starts with [`reset_registers`].
    ///
    /// # Errors
    /// When the guest has less than 1 MiB of memory.
    pub fn load(&self) -> Result<()> {
        image::load(&self.ram)
    }

    /// Serves the call of a vCPU that has just written to [`PORT`]. A write from anywhere but the image is
    /// ignored.
    ///
    /// # Errors
    /// When KVM does not give or take registers.
    pub fn call(&mut self, vcpu: &mut kvm_ioctls::VcpuFd) -> Result<Action> {
        let mut frame = Frame::load(vcpu, &self.ram)?;
        let Some(slot) = frame.slot() else { return Ok(Action::Continue) };
        let action = self.serve(slot, &mut frame);
        frame.store(vcpu, &self.ram)?;
        Ok(action)
    }

    fn serve(&mut self, slot: Slot, frame: &mut Frame) -> Action {
        match slot {
            Slot::PowerOn => self.power_on(),
            Slot::Interrupt(0x10) => self.video(frame),
            Slot::Interrupt(0x11) => frame.set_ax(self.ram.u16(bda::EQUIPMENT)),
            Slot::Interrupt(0x12) => frame.set_ax(self.ram.u16(bda::MEMORY_KIB)),
            Slot::Interrupt(0x13) => self.disk(frame),
            Slot::Interrupt(0x14) => self.serial(frame),
            Slot::Interrupt(0x15) => return self.system(frame),
            Slot::Interrupt(0x16) => self.keyboard(frame),
            // Timeout: there is no printer.
            Slot::Interrupt(0x17) => frame.set_ah(0x01),
            Slot::Interrupt(0x18) => self.stop(frame, "the boot sector has found nothing to boot"),
            Slot::Interrupt(0x19) => self.boot(frame),
            Slot::Interrupt(0x1a) => self.time(frame),
            Slot::Interrupt(_) => {}
        }
        Action::Continue
    }

    /// INT 15h is a collection: memory, delays, power management.
    fn system(&mut self, frame: &mut Frame) -> Action {
        match frame.ah() {
            0x53 => return self.power(frame),
            0x86 => self.delay(frame),
            // A key may pass: keyboard drivers ask so, and carry set is the answer.
            0x4f => frame.set_carry(true),
            _ => self.memory(frame),
        }
        Action::Continue
    }
}
