//! The one binary.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let name = args.remove(0);
    if name.to_string_lossy().ends_with("qemu-img") {
        return cowvm::imgtool::main("qemu-img", args);
    }
    if !args.is_empty() {
        args.remove(0);
    }
    cowvm::imgtool::main("cowvm imgtool", args)
}
