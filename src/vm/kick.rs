//! Making a thread leave KVM_RUN: a signal whose handler asks KVM to return at once.
//!
//! The flag `immediate_exit` closes the gap between the thread's last look at the run state and its next
//! KVM_RUN: a signal that arrives there makes KVM_RUN return EINTR without running the guest.

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::{self, NonNull};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The page that this thread's vCPU shares with KVM.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Installs the handler; once a process is enough, more do no harm.
///
/// # Errors
/// When the host has no real-time signals.
pub fn install() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick)?;
    Ok(())
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(run) = NonNull::new(RUN.get()) {
        // SAFETY: the pointer was set by this very thread from a mapping that it unsets before unmapping.
        unsafe { ptr::addr_of_mut!((*run.as_ptr()).immediate_exit).write_volatile(1) };
    }
}

/// Makes `thread` leave KVM_RUN, now or when it next enters.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread that has not been joined has a valid id.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
}

/// While it lives, kicks reach the vCPU of this thread.
#[must_use]
pub struct Kickable(());

impl Kickable {
    /// Kicks reach `vcpu` from now on. It must outlive the guard, on this thread.
    pub fn new(vcpu: &mut VcpuFd) -> Kickable {
        RUN.set(ptr::from_mut(vcpu.get_kvm_run()));
        Kickable(())
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}
