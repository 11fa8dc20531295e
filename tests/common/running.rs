//! Programs as their user has them: what they print, what is typed to them, their end; and a terminal to run them on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;

/// How long anything may take; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Whether machines can run here; said aloud where they cannot.
pub(crate) fn has_kvm() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("skipped: /dev/kvm cannot be opened");
    }
    usable
}

/// What a program prints, as it comes. It never waits for us.
pub(crate) struct Output {
    bytes: mpsc::Receiver<Vec<u8>>,
    /// What nobody has expected yet.
    pub(crate) seen: String,
}

impl Output {
    pub(crate) fn of(mut source: impl Read + Send + 'static) -> Output {
        let (sender, bytes) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Output { bytes, seen: String::new() }
    }

    /// Waits until `text` has been printed, and forgets all up to there; returns it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        while !self.seen.contains(text) {
            match self.bytes.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}) in {:?}", self.seen),
            }
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end).collect()
    }

    /// Waits for its end; what nobody has expected.
    fn rest(&mut self) -> String {
        loop {
            match self.bytes.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return std::mem::take(&mut self.seen),
                Err(error) => panic!("it does not end ({error}): {:?}", self.seen),
            }
        }
    }
}

/// A process that is killed when the test forgets it.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) output: Output,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap();
        let output = Output::of(child.stdout.take().unwrap());
        Running { child, output }
    }

    pub(crate) fn expect(&mut self, text: &str) -> String {
        self.output.expect(text)
    }

    pub(crate) fn type_(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the end. The output ends when the process does.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let rest = self.output.rest();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A pseudo terminal: the user's end and the program's.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let (mut user, mut program) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the two results are written; name, settings and size are left out.
    let result = unsafe { libc::openpty(&mut user, &mut program, null, null.cast(), null.cast()) };
    assert_eq!(result, 0);
    // SAFETY: both descriptors are new and nobody else's.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(program)) }
}
