//! A vCPU: its KVM file, its thread, and what happens when the guest leaves guest mode.
//!
//! ```text
//!   thread:  enter ─▶ [ KVM_RUN ─▶ exit ─▶ bus, BIOS, run state ]* ─▶ settle ─▶ enter (parked)
//!                          ▲ kicks make it return
//! ```
//!
//! Invariant: a parked vCPU holds no lock, and no half-done instruction waits in KVM, so that its registers
//! may be read and set by the main thread.

use crate::devices::bus::Bus;
use crate::vm::boot::Boot;
use crate::vm::kick::{Kickable, kick};
use crate::vm::run_state::{Request, RunState};
use crate::vm::vcpu_section::VcpuV1;
use crate::vm::vcpu_state::PowerOnState;
use crate::vm::{Error, Result};
use crate::vmstate;
use kvm_bindings::{
    CpuId, KVM_EXIT_IO_IN, KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How many unfinished accesses one instruction can leave, generously: KVM restarts a repeated string
/// instruction up to 1024 times before it looks whether it should return.
const SETTLE_LIMIT: usize = 1 << 16;

/// What all vCPUs of a machine share.
pub struct Shared {
    /// I/O ports.
    pub ports: Bus,
    /// Memory without RAM behind it.
    pub mmio: Bus,
    /// Whether to run.
    pub run_state: Arc<RunState>,
    /// What serves the BIOS port; vCPU 0's thread calls it.
    pub boot: Mutex<Boot>,
    /// The port whose writes call the BIOS; none when the guest was booted without one.
    pub bios_port: Option<u16>,
}

/// A vCPU of the machine.
pub struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    power_on: PowerOnState,
    cpuid: CpuId,
    /// The model-specific registers that are state.
    msrs: Vec<u32>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// A vCPU without a thread yet, at power-on. It has been told of `cpuid`.
    pub fn new(fd: VcpuFd, power_on: PowerOnState, cpuid: CpuId) -> Vcpu {
        let msrs = power_on.settable_msrs(&fd);
        Vcpu { fd: Arc::new(Mutex::new(fd)), power_on, cpuid, msrs, thread: None }
    }

    /// Starts the thread, which parks until the run state lets it go.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(&mut self, index: usize, shared: Arc<Shared>) -> std::io::Result<()> {
        let fd = self.fd.clone();
        let thread = std::thread::Builder::new().name(format!("vcpu-{index}"));
        self.thread = Some(thread.spawn(move || run(&fd, &shared))?);
        Ok(())
    }

    /// Whether it has a thread, which can be parked.
    pub fn started(&self) -> bool {
        self.thread.is_some()
    }

    /// Makes the thread leave guest mode.
    pub fn kick(&self) {
        self.thread.iter().for_each(kick);
    }

    /// Waits for the end of the thread, which the run state has sent home.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic has been reported on stderr when it happened.
            let _ = thread.join();
        }
    }

    /// The KVM file; to be locked while the vCPU is parked.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers as text. The vCPU must be parked.
    ///
    /// # Errors
    /// What KVM says.
    pub fn registers(&self) -> Result<String> {
        registers(&self.fd()).map_err(|error| Error::kvm("give the registers", error))
    }

    /// Puts the vCPU back to power-on.
    ///
    /// # Errors
    /// What KVM says.
    pub fn reset(&self) -> Result<()> {
        self.power_on.restore(&self.fd())
    }

    /// Its state. It is parked.
    pub(super) fn save(&self) -> Result<VcpuV1> {
        VcpuV1::read(&self.fd(), self.cpuid.as_slice(), &self.msrs)
    }

    /// Whether it could be in this state.
    pub(super) fn check(&self, state: &VcpuV1) -> vmstate::Result<()> {
        state.check(self.cpuid.as_slice(), &self.msrs, &self.power_on)
    }

    /// Takes up a state that was checked. It is parked.
    pub(super) fn load(&self, state: &VcpuV1) -> Result<()> {
        let vcpu = self.fd();
        self.power_on.restore_msrs_but(&vcpu, &state.msr_indices());
        state.write(&vcpu)
    }
}

/// The thread.
fn run(fd: &Mutex<VcpuFd>, shared: &Shared) {
    while shared.run_state.enter() {
        let mut fd = fd.lock().unwrap_or_else(PoisonError::into_inner);
        let kickable = Kickable::new(&mut fd);
        // A panic must not leave the machine waiting for a vCPU that never parks.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            run_guest(&mut fd, shared).and_then(|()| settle(&mut fd, shared))
        }));
        drop(kickable);
        let outcome = outcome.unwrap_or_else(|_| Err(Error::new("a vCPU's thread has panicked")));
        if let Err(error) = outcome {
            shared.run_state.request(Request::Failure(error.to_string()));
        }
    }
}

fn run_guest(fd: &mut VcpuFd, shared: &Shared) -> Result<()> {
    while !shared.run_state.must_leave() {
        if step(fd, shared)? == Step::CallBios {
            settle(fd, shared)?;
            call_bios(fd, shared)?;
        }
    }
    Ok(())
}

/// Finishes the instruction that the last exit interrupted, without starting another.
fn settle(fd: &mut VcpuFd, shared: &Shared) -> Result<()> {
    for _ in 0..SETTLE_LIMIT {
        fd.set_kvm_immediate_exit(1);
        if step(fd, shared)? == Step::Interrupted {
            fd.set_kvm_immediate_exit(0);
            return Ok(());
        }
    }
    Err(failure(fd, "an instruction of the guest does not come to its end"))
}

/// What came out of one KVM_RUN.
#[derive(PartialEq, Eq)]
enum Step {
    /// An exit, served.
    Served,
    /// KVM returned for a signal or because it was told to.
    Interrupted,
    /// The guest calls the BIOS.
    CallBios,
}

fn step(fd: &mut VcpuFd, shared: &Shared) -> Result<Step> {
    match fd.run() {
        Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
        Ok(VcpuExit::IoOut(port, _)) if Some(port) == shared.bios_port => return Ok(Step::CallBios),
        Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => port_access(fd, &shared.ports),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
        Ok(VcpuExit::Shutdown) => {
            // Some systems reboot so; others have crashed, and nothing else tells.
            eprintln!("cowvm: a vCPU of the guest has triple-faulted: the machine is reset");
            shared.run_state.request(Request::Reset);
        }
        Ok(VcpuExit::SystemEvent(kind, _)) => shared.run_state.request(system_event(kind)),
        Ok(VcpuExit::InternalError) => return Err(internal_error(fd)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Err(failure(
                fd,
                &format!("the CPU refused to enter the guest (reason {reason:#x}, CPU {cpu})"),
            ));
        }
        Ok(other) => {
            let what = format!("{other:?}");
            return Err(failure(fd, &format!("KVM returned an unexpected exit: {what}")));
        }
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            fd.set_kvm_immediate_exit(0);
            return Ok(Step::Interrupted);
        }
        Err(error) => return Err(failure(fd, &Error::kvm("run the guest", error).to_string())),
    }
    Ok(Step::Served)
}

/// Serves an exit for a port: one access, or the repetitions of a string instruction.
fn port_access(fd: &mut VcpuFd, ports: &Bus) {
    let run = fd.get_kvm_run();
    // SAFETY: the exit was for a port, so this member of the union is the one that KVM has filled.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (width, count) = (usize::from(io.size), io.count as usize);
    let base = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: KVM puts the data at this offset of the mapping that `run` begins, which is exclusively ours
    // between two KVM_RUN.
    let data = unsafe { std::slice::from_raw_parts_mut(base.add(io.data_offset as usize), width * count) };
    for item in data.chunks_exact_mut(width.max(1)) {
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            ports.read(io.port.into(), item);
        } else {
            ports.write(io.port.into(), item);
        }
    }
}

fn call_bios(fd: &mut VcpuFd, shared: &Shared) -> Result<()> {
    let mut boot = shared.boot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(request) = boot.call(fd)? {
        shared.run_state.request(request);
    }
    Ok(())
}

fn system_event(kind: u32) -> Request {
    match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => Request::PowerOff,
        KVM_SYSTEM_EVENT_RESET => Request::Reset,
        KVM_SYSTEM_EVENT_CRASH => Request::Failure("the guest reports a crash".to_owned()),
        _ => Request::Failure(format!("the guest reports event {kind}, which is not known here")),
    }
}

fn internal_error(fd: &mut VcpuFd) -> Error {
    // SAFETY: the exit was an internal error, so this member of the union is the one that KVM has filled.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let what = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate an instruction".to_owned(),
        other => format!("KVM reports internal error {other}"),
    };
    failure(fd, &what)
}

/// `what`, with the registers that tell where.
fn failure(fd: &VcpuFd, what: &str) -> Error {
    match registers(fd) {
        Ok(registers) => Error::new(format!("{what}\n{registers}")),
        Err(_) => Error::new(what),
    }
}

fn registers(fd: &VcpuFd) -> std::result::Result<String, kvm_ioctls::Error> {
    let (r, s) = (fd.get_regs()?, fd.get_sregs()?);
    Ok(format!(
        "RAX={:016x} RBX={:016x} RCX={:016x} RDX={:016x}\n\
         RSI={:016x} RDI={:016x} RBP={:016x} RSP={:016x}\n\
         R8 ={:016x} R9 ={:016x} R10={:016x} R11={:016x}\n\
         R12={:016x} R13={:016x} R14={:016x} R15={:016x}\n\
         RIP={:016x} RFL={:08x} CS={:04x}:{:x} SS={:04x}:{:x} DS={:04x}:{:x}\n\
         CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} EFER={:x}",
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.rsp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.rip,
        r.rflags,
        s.cs.selector,
        s.cs.base,
        s.ss.selector,
        s.ss.base,
        s.ds.selector,
        s.ds.base,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer,
    ))
}
