//! `cowvm nbd`: serves an image to NBD clients, word for word like qemu-nbd.
//!
//! ```text
//!   options ─▶ list                                  -L: what another server has
//!         └──▶ serve: bind ─▶ open the image ─▶ [detach] ─▶ nbd_server ─▶ close the image
//! ```
//!
//! Every failure is one line behind the program's name and the exit status 1. Called as `cowvm nbd`, a second line says
//! what to do about it.

mod detach;
mod flags;
mod image;
mod list;
mod options;
mod serve;
mod task;
mod tls;

use crate::block::Error;
use crate::util::getopt::Mistake;
use crate::util::text::{self, say};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use task::Task;

/// The name that scripts call; messages to them are exactly QEMU's.
const DROP_IN: &str = "qemu-nbd";

/// Why it ends early.
#[derive(Debug)]
enum Failure {
    /// A mistake in the options.
    Options(Mistake),
    /// Another number of operands than one.
    Operands,
    /// Anything else.
    Other { message: String, remedy: Option<String> },
}

impl Failure {
    fn message(message: impl Into<String>) -> Failure {
        Failure::Other { message: message.into(), remedy: None }
    }

    /// An option of qemu-nbd that there is nothing for.
    fn unsupported(option: &str, remedy: &str) -> Failure {
        Failure::Other { message: format!("{option} is not supported"), remedy: Some(remedy.to_owned()) }
    }

    /// A failure of the block layer, in its own words.
    fn plain(error: &Error) -> Failure {
        Failure::Other { message: error.message().to_owned(), remedy: error.hint().map(str::to_owned) }
    }

    /// A failure of the block layer, said after `prefix` and a colon.
    fn block(prefix: &str, error: &Error) -> Failure {
        Failure::Other {
            message: format!("{prefix}: {}", error.message()),
            remedy: error.hint().map(str::to_owned),
        }
    }

    fn report(&self, program: &str) {
        let help = format!("Try `{program} --help' for more information.");
        match self {
            Failure::Options(mistake) => say(&format!("{program}: {mistake}\n{program}: {help}")),
            Failure::Operands => say(&format!("{program}: Invalid number of arguments\n{help}")),
            Failure::Other { message, remedy } => {
                say(&format!("{program}: {message}"));
                if let Some(remedy) = remedy.as_ref().filter(|_| program != DROP_IN) {
                    say(&format!("{program}: {remedy}"));
                }
            }
        }
    }
}

impl From<Mistake> for Failure {
    fn from(mistake: Mistake) -> Failure {
        Failure::Options(mistake)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::plain(&Error::from_io(error))
    }
}

/// Runs the tool. `program` is what its messages begin with, `args` all that follows on the command line.
pub(super) fn main(program: &str, args: Vec<OsString>) -> ExitCode {
    let args = args.iter().map(|arg| text::from_os(arg)).collect();
    let done = options::read(program, args).and_then(|task| match task {
        Task::Help => print(&flags::help(program)),
        Task::Version => print(&flags::version()),
        Task::Events => print(&crate::block::trace::list()),
        Task::List(address, tls) => list::run(&address, tls.as_ref()),
        Task::Disconnect(device) => Err(no_kernel_client("Cannot open", &device)),
        Task::Serve(wish) => serve::run(program, *wish),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(program);
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(&text::shown(text))?)
}

/// The kernel's own client is not driven; where the kernel has none, that is said first, as qemu-nbd does.
fn no_kernel_client(doing: &str, device: &str) -> Failure {
    match std::fs::File::open(text::to_path(device)) {
        Err(error) => Failure::Other {
            message: format!("{doing} {device}: {}", crate::block::error::errno_text(&error)),
            remedy: Some("load the kernel's module: modprobe nbd".to_owned()),
        },
        Ok(_) => Failure::Other {
            message: format!("the kernel's NBD client ({device}) is not supported yet"),
            remedy: Some("serve on a socket, and attach it with: nbd-client".to_owned()),
        },
    }
}
