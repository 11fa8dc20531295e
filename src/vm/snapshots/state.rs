//! The state of the whole machine but RAM: read into sections, checked against this machine, put back.
//!
//! | section | what it is of |
//! | --- | --- |
//! | `machine` | what the machine is made of; how long the guest has run |
//! | `vcpu.N` | each vCPU |
//! | `irqchip`, `kvmclock` | KVM's interrupt controllers and timer, its clock |
//! | `uart`, `cmos`, `pm` | serial port, real-time clock, ACPI's registers |
//! | `pci`, `pci.N` | the bus, the device in each slot |
//! | `media` | what was in the removable drives, where there are any |
//! | `bios` | what the BIOS remembers outside of the guest's memory, where there is one |
//!
//! The keyboard controller has no state. Bytes typed that the guest has not read belong to the console.

use crate::devices::acpi::pm::PowerManagementV1;
use crate::devices::legacy::cmos::{Cmos, CmosV1};
use crate::devices::legacy::serial::{Uart, UartV1};
use crate::devices::pci::PciState;
use crate::vm::boot::bios::BiosV1;
use crate::vm::irqchip::{ChipsV1, PowerOnState};
use crate::vm::machine::{Machine, lock};
use crate::vm::memory;
use crate::vm::run_state::Request;
use crate::vm::snapshots::media;
use crate::vm::vcpu_section::VcpuV1;
use crate::vm::{Error, Result};
use crate::vmstate::{self, Section, Sections};
use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a snapshot fits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineV1 {
    memory: u64,
    vcpus: usize,
    /// Booted by the BIOS, not by a kernel of the command line.
    bios: bool,
    run_nsec: u64,
    /// What the guest has asked for, and is to happen when it goes on.
    request: Option<RequestV1>,
}

/// A wish of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RequestV1 {
    Reset,
    PowerOff,
}

/// KVM's clock, in nanoseconds; none where this KVM has no such.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvmClockV1 {
    nsec: Option<u64>,
}

/// A state that the machine could be in.
pub(super) struct Checked {
    machine: MachineV1,
    vcpus: Vec<VcpuV1>,
    chips: ChipsV1,
    clock: KvmClockV1,
    uart: UartV1,
    cmos: CmosV1,
    power: PowerManagementV1,
    pci: PciState,
    bios: Option<BiosV1>,
}

impl Checked {
    /// What the guest has asked for.
    pub(super) fn request(&self) -> Option<Request> {
        self.machine.request.map(|request| match request {
            RequestV1::Reset => Request::Reset,
            RequestV1::PowerOff => Request::PowerOff,
        })
    }
}

impl Machine {
    /// The state of all but RAM. The machine is paused.
    pub(super) fn capture(&self) -> Result<Vec<Section>> {
        let bios = lock(&self.shared.boot).save();
        let machine = MachineV1 {
            memory: memory::size(&self.memory),
            vcpus: self.vcpus.len(),
            bios: bios.is_some(),
            run_nsec: u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX),
            request: match self.run_state().pending() {
                Some(Request::Reset) => Some(RequestV1::Reset),
                Some(Request::PowerOff) => Some(RequestV1::PowerOff),
                // Of the host's disks and KVM.
                Some(Request::DiskError | Request::Failure(_)) | None => None,
            },
        };
        // Before the vCPUs' TSC: the guest's clocks must not run ahead of each other by what reading takes.
        let clock = KvmClockV1 { nsec: self.vm.get_clock().ok().map(|clock| clock.clock) };
        let mut sections = vec![Section::new("machine", 1, &machine)?];
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            sections.push(Section::new(format!("vcpu.{index}"), 1, &vcpu.save()?)?);
        }
        sections.push(Section::new("irqchip", 1, &PowerOnState::read(&self.vm).save())?);
        sections.push(Section::new("kvmclock", 1, &clock)?);
        sections.push(Section::new("uart", 1, &lock(&self.uart).save())?);
        sections.push(Section::new("cmos", 1, &lock(&self.cmos).save())?);
        sections.push(Section::new("pm", 1, &lock(&self.power).save())?);
        sections.extend(lock(&self.pci).save()?);
        sections.extend(media::section(&self.disks)?);
        if let Some(bios) = bios {
            sections.push(Section::new("bios", 1, &bios)?);
        }
        Ok(sections)
    }

    /// Checks that the machine could be in this state. Changes nothing.
    pub(super) fn check_state(&self, sections: Vec<Section>) -> Result<Checked> {
        let mut sections = Sections::new(sections)?;
        let machine: MachineV1 = sections.read("machine")?;
        self.check_machine(&machine)?;
        media::check(&self.disks, &mut sections)?;
        let vcpus = (0..machine.vcpus).map(|index| sections.read(&format!("vcpu.{index}")));
        let state = Checked {
            vcpus: vcpus.collect::<vmstate::Result<_>>()?,
            chips: sections.read("irqchip")?,
            clock: sections.read("kvmclock")?,
            uart: sections.read("uart")?,
            cmos: sections.read("cmos")?,
            power: sections.read("pm")?,
            pci: lock(&self.pci).check(&mut sections)?,
            bios: machine.bios.then(|| sections.read("bios")).transpose()?,
            machine,
        };
        sections.finish()?;
        self.vcpus.iter().zip(&state.vcpus).try_for_each(|(vcpu, state)| vcpu.check(state))?;
        self.chips.check(&state.chips)?;
        Uart::check(&state.uart)?;
        Cmos::check(&state.cmos)?;
        state.bios.iter().try_for_each(BiosV1::check)?;
        Ok(state)
    }

    fn check_machine(&self, state: &MachineV1) -> Result<()> {
        let (memory, vcpus) = (memory::size(&self.memory), self.vcpus.len());
        if (state.memory, state.vcpus) != (memory, vcpus) {
            let error = format!(
                "the snapshot is of a machine with {} bytes of memory and {} vCPUs, and this one has {memory} and \
                 {vcpus}",
                state.memory, state.vcpus
            );
            let remedy = format!("start with -m {}k -smp {}", state.memory >> 10, state.vcpus);
            return Err(Error::new(error).remedy(remedy));
        }
        if state.bios != lock(&self.shared.boot).save().is_some() {
            let booted = if state.bios { "a disk" } else { "a kernel of the command line" };
            return Err(Error::new(format!("the snapshot is of a machine that was booted from {booted}"))
                .remedy("start this one in the same way"));
        }
        Ok(())
    }

    /// Puts the machine, which is paused, into a state that was checked, as often as is wanted. Interrupt controllers come before devices,
    /// which may have one pending; the clock last, as it runs on.
    ///
    /// # Errors
    /// What KVM or the host says; the machine is then to be put into another state.
    pub(super) fn apply_state(&mut self, state: &Checked) -> Result<()> {
        self.vcpus.iter().zip(&state.vcpus).try_for_each(|(vcpu, state)| vcpu.load(state))?;
        PowerOnState::of(&state.chips).restore(&self.vm)?;
        lock(&self.pci).load(&state.pci)?;
        lock(&self.uart)
            .load(&state.uart)
            .map_err(|error| Error::new(format!("cannot set up the serial port: {error}")))?;
        lock(&self.cmos).load(&state.cmos);
        lock(&self.power).load(&state.power);
        state.bios.iter().for_each(|bios| lock(&self.shared.boot).load(bios));
        self.clock.set(Duration::from_nanos(state.machine.run_nsec));
        self.set_kvm_clock(&state.clock)
    }

    fn set_kvm_clock(&self, state: &KvmClockV1) -> Result<()> {
        let Some(clock) = state.nsec else { return Ok(()) };
        let clock = kvm_clock_data { clock, ..Default::default() };
        self.vm.set_clock(&clock).map_err(|error| Error::kvm("set its clock", error))
    }
}
