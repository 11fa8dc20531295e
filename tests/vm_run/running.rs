//! A machine as a process: what it prints, what is typed to it, its end.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long anything may take; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn cowvm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowvm"));
    command.arg("run").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn has_kvm() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("skipped: /dev/kvm cannot be opened");
    }
    usable
}

/// A process that is killed when the test forgets it, and what it has printed.
pub(crate) struct Running {
    pub(crate) child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    pub(crate) seen: String,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap();
        let output = forward(child.stdout.take().unwrap());
        Running { child, output, seen: String::new() }
    }

    /// Waits until `text` has been printed.
    pub(crate) fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}) in {:?}", self.seen),
            }
        }
    }

    pub(crate) fn type_(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: a plain system call on a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for the end. The output ends when the process does.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        loop {
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("it does not end ({error}): {:?}", self.seen),
            }
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(mut output: ChildStdout) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}
