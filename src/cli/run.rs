//! `cowvm run`: from arguments to a machine, and what is left to say when it has ended.

use crate::block::options::Removable;
use crate::block::secret::Secrets;
use crate::cli::drive::{self, DriveSpec};
use crate::cli::keyboard::{Keyboard, Use};
use crate::cli::monitors::Monitors;
use crate::cli::prompt::Prompt;
use crate::cli::session::{self, End, Session};
use crate::cli::signals::Signals;
use crate::cli::terminal::{self, RawMode, Stdout};
use crate::monitor::Control;
use crate::monitor::server::Server;
use crate::util::keyval::Options;
use crate::util::size::parse_size_in;
use crate::vm::boot::{demo, linux};
use crate::vm::builder::{BootSource, Plan};
use crate::vm::console::Console;
use crate::vm::{Error, Result};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Options of `cowvm run`. Long names may be written with one dash, as in QEMU.
#[derive(Args, Clone, Debug)]
pub(super) struct RunArgs {
    /// Disk image to boot from, the same as -hda
    image: Option<String>,
    /// Memory of the guest: MiB, or with a suffix (2G)
    #[arg(short, value_name = "SIZE", default_value = "512", allow_hyphen_values = true)]
    memory: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    smp: String,
    /// Boot this kernel (bzImage or ELF) instead of a disk
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line for the kernel
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// First disk
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    hda: Option<String>,
    /// Second disk
    #[arg(long, value_name = "FILE")]
    hdb: Option<String>,
    /// Third disk
    #[arg(long, value_name = "FILE")]
    hdc: Option<String>,
    /// Fourth disk
    #[arg(long, value_name = "FILE")]
    hdd: Option<String>,
    /// A CD-ROM drive with this disc (an image, or a drive of the host such as /dev/cdrom)
    #[arg(long, value_name = "FILE")]
    cdrom: Option<String>,
    /// First floppy drive with this disk
    #[arg(long, value_name = "FILE")]
    fda: Option<String>,
    /// Second floppy drive
    #[arg(long, value_name = "FILE")]
    fdb: Option<String>,
    /// A disk with options: file=,format=,id=,media=disk|cdrom|floppy,readonly=on|off,cache=,discard=ignore|unmap,serial=,encrypt.key-secret=
    #[arg(long, value_name = "KEY=VALUE,...")]
    drive: Vec<String>,
    /// A passphrase for encrypted disks: secret,id=ID,file=FILE[,format=base64]; certificates for NBD over TLS:
    /// tls-creds-x509,id=ID,dir=DIR,endpoint=client|server[,verify-peer=off]
    #[arg(long, value_name = "TYPE,id=ID,...")]
    object: Vec<String>,
    /// Open the disks read-only although other programs use them
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Leave all disk images as they are: writes go to temporary overlays
    #[arg(long)]
    snapshot: bool,
    /// Where the monitor is: stdio, none, unix:PATH,server,nowait or tcp:HOST:PORT,server,nowait
    #[arg(long, value_name = "DEVICE")]
    monitor: Vec<String>,
    /// The same for QMP, the monitor for programs: unix:PATH,server,nowait or tcp:HOST:PORT,server,nowait
    #[arg(long, value_name = "DEVICE")]
    qmp: Vec<String>,
    /// The console's escape key by its ASCII code instead of Ctrl-A
    #[arg(long, value_name = "NUMBER")]
    echr: Option<String>,
    /// Go on from this VM snapshot (a tag or an ID) instead of booting
    #[arg(long, value_name = "TAG")]
    loadvm: Option<String>,
    /// End when the guest reboots
    #[arg(long)]
    no_reboot: bool,
}

/// Runs a guest.
///
/// # Errors
/// Whatever keeps the guest from booting, or a disk from being written back.
pub(super) fn run(args: &RunArgs) -> Result<ExitCode> {
    let signals =
        Signals::take_over().map_err(|error| Error::new(format!("cannot take signals: {error}")))?;
    let monitors = Monitors::parse(&args.monitor, &args.qmp, args.echr.as_deref()).map_err(refused)?;
    let plan = Plan::new(parse_memory(&args.memory)?, parse_smp(&args.smp)?)?;
    let secrets = args.secrets()?;
    let disks = drive::open_all(&args.disks_or_demo()?, args.force_share, &secrets)?;
    let server = Server::bind(session::SOCKETS, &monitors.sockets).map_err(refused)?;
    let stdout = Stdout::open().map_err(|error| Error::new(format!("cannot use stdout: {error}")))?;
    let console = Console::new(stdout).map_err(host("start a thread"))?;
    // The guest's output has no place beside the monitor's.
    let guests = match monitors.stdio {
        Use::Monitor => Console::new(std::io::sink()).map_err(host("start a thread"))?,
        Use::Shared | Use::Console => console.clone(),
    };
    let mut machine = plan.build(disks, args.boot_source(), &guests)?;
    if let Some(snapshot) = &args.loadvm {
        machine.start_from(snapshot);
    }
    let control = Control::new(machine, secrets).map_err(host("create an eventfd"))?;
    let keyboard = Keyboard::new(console.clone(), session::STDIN, monitors.stdio, monitors.escape);
    let keyboard = keyboard.map_err(host("create an eventfd"))?;
    let terminal = RawMode::enter().map_err(host("set up the terminal"))?;
    let mut session =
        Session { control, keyboard, prompt: None, server, signals, no_reboot: args.no_reboot, end: None };
    if monitors.stdio == Use::Monitor && terminal::is_interactive() {
        session.keyboard.leave();
        session.prompt = Some(Prompt::start().map_err(host("use the terminal"))?);
    }
    let end = session.run();
    console.flush();
    drop(terminal);
    report(&end?)
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::new(format!("cannot {what}: {error}"))
}

fn refused(error: crate::monitor::Error) -> Error {
    Error::new(error.description)
}

/// The process's last words.
fn report(end: &End) -> Result<ExitCode> {
    match end {
        End::Quit(_) => Ok(ExitCode::SUCCESS),
        End::Signal(number) => {
            eprintln!("cowvm: terminating on signal {number}");
            Ok(ExitCode::SUCCESS)
        }
        End::Failure(what) => Err(Error::new(what)),
    }
}

impl RunArgs {
    /// The disks in the order of their slots: the named ones, then those of -drive, then the removable ones, so that
    /// one of these does not change what the guest calls the others.
    fn disks(&self) -> Result<Vec<DriveSpec>> {
        let named = [
            ("hda", self.hda.as_ref().or(self.image.as_ref())),
            ("hdb", self.hdb.as_ref()),
            ("hdc", self.hdc.as_ref()),
            ("hdd", self.hdd.as_ref()),
        ];
        let named = named.into_iter().filter_map(|(id, file)| Some(Ok(DriveSpec::plain(id, file?))));
        let removable = [
            ("ide1-cd0", &self.cdrom, Removable::Cdrom),
            ("floppy0", &self.fda, Removable::Floppy),
            ("floppy1", &self.fdb, Removable::Floppy),
        ];
        let removable = removable
            .into_iter()
            .filter_map(|(id, file, kind)| Some(Ok(DriveSpec::removable(id, file.as_ref()?, kind))));
        let all = named.chain(self.drive.iter().map(|text| DriveSpec::parse(text))).chain(removable);
        match self.snapshot {
            true => all.map(|spec| Ok(spec?.in_snapshot_mode())).collect(),
            false => all.collect(),
        }
    }

    /// The disks, or a new one with the demo guest where there is nothing else to boot.
    fn disks_or_demo(&self) -> Result<Vec<DriveSpec>> {
        let disks = self.disks()?;
        if !disks.is_empty() || self.kernel.is_some() {
            return Ok(disks);
        }
        let path = demo::make_temporary_disk()?;
        eprint!("{}", demo::announcement(&path));
        let demo = DriveSpec::plain("hda", &path);
        Ok(vec![if self.snapshot { demo.in_snapshot_mode() } else { demo }])
    }

    fn secrets(&self) -> Result<Secrets> {
        let mut secrets = Secrets::default();
        self.object.iter().try_for_each(|text| secrets.define(text))?;
        Ok(secrets)
    }

    fn boot_source(&self) -> BootSource {
        match &self.kernel {
            None => BootSource::Disk,
            Some(kernel) => BootSource::Linux(linux::Files {
                kernel: kernel.clone(),
                initrd: self.initrd.clone(),
                command_line: self.append.clone().unwrap_or_default(),
            }),
        }
    }
}

/// `-m`: `512`, `2G`, `size=2G`; whole pages, rounded up.
fn parse_memory(text: &str) -> Result<u64> {
    let size = text.strip_prefix("size=").unwrap_or(text);
    let bytes = parse_size_in(size, MIB).ok().and_then(|bytes| bytes.checked_next_multiple_of(PAGE));
    bytes.ok_or_else(|| {
        Error::new(format!("-m {text}: this is not a size")).remedy("write MiB, or a number and k, M, G")
    })
}

/// `-smp`: `4` or `cpus=4`.
fn parse_smp(text: &str) -> Result<u8> {
    let bad = |why: String| Error::new(format!("-smp {text}: {why}"));
    let mut options = Options::parse(text, Some("cpus"));
    let count = options.take("cpus").ok_or_else(|| bad("the number of vCPUs is missing".to_owned()))?;
    options.finish().map_err(|error| bad(error.to_string()))?;
    let number: u64 = count.parse().map_err(|_| bad(format!("'{count}' is not a number")))?;
    u8::try_from(number).map_err(|_| bad("too many vCPUs".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_counts_mebibytes_unless_a_suffix_says_otherwise() {
        for (text, bytes) in
            [("512", 512 * MIB), ("2G", 2048 * MIB), ("size=64M", 64 * MIB), ("5000k", 5000 << 10)]
        {
            assert_eq!(parse_memory(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "lots", "-5", "99999999999999999999", "16777216T", "maxmem=5"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
        assert_eq!(parse_memory("3000001b").unwrap() % PAGE, 0);
    }

    #[test]
    fn smp_takes_a_number_plain_or_as_cpus() {
        assert_eq!((parse_smp("4").unwrap(), parse_smp("cpus=8").unwrap()), (4, 8));
        for text in ["", "x", "-1", "4,sockets=2", "256"] {
            assert!(parse_smp(text).is_err(), "{text}");
        }
    }
}
