//! What a command line costs: how long it takes, and the most memory that it has at once.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    /// Most memory at once, in MiB.
    pub(crate) memory: f64,
}

/// Runs the words of `line` as arguments of `tool`, in `folder`, so many times, one after the other; each must succeed.
pub(crate) fn cost(tool: &[&str], line: &str, folder: &Path, times: u32) -> Cost {
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).args(line.split(' ')).current_dir(folder).stdout(Stdio::null());
    let start = Instant::now();
    let mut memory = 0.0_f64;
    for _ in 0..times {
        #[expect(clippy::zombie_processes, reason = "wait4 waits, and tells of the memory")]
        let child = command.spawn().unwrap();
        memory = memory.max(wait(child.id(), line));
    }
    Cost { seconds: start.elapsed().as_secs_f64() / f64::from(times), memory }
}

/// Waits for a child, which must succeed. Returns the most memory that it had, in MiB.
fn wait(child: u32, line: &str) -> f64 {
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and nobody else waits for it; both places live as long as the call.
    let waited = unsafe { libc::wait4(child as i32, &mut status, 0, &mut usage) };
    assert!(waited == child as i32 && status == 0, "{line}: {status:#x}");
    usage.ru_maxrss as f64 / 1024.0
}
