//! Host programs run to their end, with a limit against hangs.
//!
//! The limit is only a guard: no result depends on how long something took.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Runs `command` with its output in the file `log`; after `limit` its whole process group is killed.
///
/// `None` says that the limit was reached.
pub(crate) fn run_within(command: &mut Command, limit: Duration, log: &Path) -> Option<ExitStatus> {
    let log = File::create(log).expect("a log file");
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle of the log"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}. Run tests/setup first."));
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().expect("the status of a child") {
            return Some(status);
        }
        sleep(Duration::from_millis(20));
    }
    output(Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]));
    child.wait().expect("the status of a killed child");
    None
}

/// Runs `command`, which must succeed, and returns what it wrote to its standard output.
pub(crate) fn output(command: &mut Command) -> String {
    let (status, text) = status_and_output(command);
    assert!(status.success(), "{command:?} failed with {status}: {text}");
    text
}

/// Runs `command` and returns its status with both of its outputs.
pub(crate) fn status_and_output(command: &mut Command) -> (ExitStatus, String) {
    let done = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}. Run tests/setup first."));
    let text = [done.stdout, done.stderr].concat();
    (done.status, String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_program_that_hangs_is_killed() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000; exit 0"]);
    assert_eq!(run_within(&mut shell, Duration::ZERO, log.path()), None);
}
