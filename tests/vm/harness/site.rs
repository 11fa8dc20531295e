//! Where `cowvm` can boot Linux: on this host, or in an emulated machine that has a true `/dev/kvm`.
//!
//! Some hosts have a `/dev/kvm` without hardware virtualization behind it, and others have none. There QEMU
//! emulates a machine with SVM, in which a Debian kernel offers KVM:
//!
//! ```text
//! host ── qemu-system-x86_64 -accel tcg -cpu max
//!           └─ outer machine: Debian kernel, kvm-amd, cowvm      /dev/vda = the session's folder as ext4
//!                └─ inner guest: Debian kernel, busybox          /dev/vda = disk.qcow2 …
//! ```
//!
//! The session's folder travels as an ext4 image: made with `mke2fs -d` before, read with `debugfs` after,
//! so that neither root nor a mount is needed on the host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::initramfs::Initramfs;
use super::process::{output, run_within};
use super::processors::Processor;

/// No scenario takes as long, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);
/// And in a long campaign.
const CAMPAIGN_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Room for a session's files, in bytes; the image is sparse.
const WORK_IMAGE_SIZE: u64 = 8 << 30;
/// A path of the project, from the root of the repository.
const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// A place where sessions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// This host, whose KVM runs Linux.
    Direct,
    /// The emulated machine.
    Emulated,
    /// This host with QEMU in the place of cowvm: tells a scenario's own mistakes from cowvm's.
    Reference,
}

impl Site {
    /// The place named by `COWVM_TEST_SITE`, else the host if it can, else the emulated machine.
    pub(crate) fn choose() -> Self {
        match std::env::var("COWVM_TEST_SITE").as_deref() {
            Ok("direct") => Self::Direct,
            Ok("emulated") => Self::Emulated,
            Ok("reference") => Self::Reference,
            Ok(other) => panic!("COWVM_TEST_SITE={other}: it is direct, emulated or reference"),
            Err(_) if host_kvm_runs_linux() => Self::Direct,
            Err(_) => Self::Emulated,
        }
    }

    /// Runs the script `folder/run`; `folder` has its results afterwards.
    ///
    /// `memory` is what the script needs in MiB: its guests and 1 GiB. The log of the place is in `log`.
    /// Whether the script came to its end is for the caller to see from what it wrote.
    pub(crate) fn run(self, folder: &Path, memory: u32, log: &Path) {
        let processor = Processor::take();
        match self {
            Self::Direct => run_here(folder, Path::new(env!("CARGO_BIN_EXE_cowvm")), log),
            Self::Reference => run_here(folder, &project("tests/vm/reference-vmm"), log),
            Self::Emulated => run_emulated(folder, memory, log, &processor),
        }
    }
}

/// Whether scenarios are to do all they can (`COWVM_SWEEP=full`), as the crash tests of the library are.
pub(crate) fn is_campaign() -> bool {
    std::env::var("COWVM_SWEEP").as_deref() == Ok("full")
}

fn limit() -> Duration {
    if is_campaign() { CAMPAIGN_LIMIT } else { LIMIT }
}

/// The path of a file of the project.
pub(crate) fn project(path: &str) -> PathBuf {
    Path::new(PROJECT).join(path)
}

/// KVM runs Linux where the processor virtualizes and the user may open the device.
fn host_kvm_runs_linux() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualizes = processors.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    virtualizes && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

fn run_here(folder: &Path, vmm: &Path, log: &Path) {
    let mut shell = Command::new("sh");
    shell.args(["-eu", "./run"]).current_dir(folder).env("COWVM", vmm);
    run_within(&mut shell, limit(), log);
}

fn run_emulated(folder: &Path, memory: u32, log: &Path, processor: &Processor) {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let (initramfs, work) = (temporary.path().join("initramfs"), temporary.path().join("work.img"));
    Initramfs::new(&project("tests/vm/outer/init"))
        .folder(&project(".cache/linux/modules"), "modules")
        .program_at(Path::new(env!("CARGO_BIN_EXE_cowvm")), "bin/cowvm")
        .write(&initramfs);
    folder_to_image(folder, &work);
    // QEMU emulates each processor on a thread of its own. Where two of these truly ran at once, an inner guest
    // with four CPUs triple-faulted now and then (seen with QEMU 10.0.2); on one processor of the host, where they
    // take turns, it did not, at little cost in time.
    let mut machine = Command::new("taskset");
    machine
        .args(["--cpu-list", &processor.0.to_string(), "qemu-system-x86_64"])
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", &memory.to_string()])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-kernel")
        .arg(project(".cache/linux/vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs)
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio,cache=unsafe", work.display()));
    run_within(&mut machine, limit(), log);
    image_to_folder(&work, folder);
}

fn folder_to_image(folder: &Path, image: &Path) {
    File::create(image).and_then(|file| file.set_len(WORK_IMAGE_SIZE)).expect("a sparse file");
    output(
        sbin("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(folder).arg(image),
    );
}

/// Replaces the contents of `folder` by what is in the image, whose machine may have been killed.
fn image_to_folder(image: &Path, folder: &Path) {
    fs::remove_dir_all(folder).and_then(|()| fs::create_dir(folder)).expect("the session's folder");
    output(sbin("debugfs").arg("-R").arg(format!("rdump / {}", folder.display())).arg(image));
}

/// A command that may be in sbin, which is not in every user's PATH.
pub(crate) fn sbin(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}
