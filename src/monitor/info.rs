//! What the machine is and does: status, version, KVM.

use super::Control;
use super::hmp::table::Command;
use super::qmp::{self, Reply};
use crate::vm::machine::Status;
use serde_json::{Value, json};

pub(super) const COMMANDS: &[Command] = &[
    Command::show("info status", "show whether the guest runs", |control, out| {
        out.push_str(&format!("VM status: {}\n", status(control).1));
        Ok(())
    }),
    Command::show("info version", "show the version of this program", |_, out| {
        out.push_str(concat!(env!("CARGO_PKG_VERSION"), "\n"));
        Ok(())
    }),
    Command::show("info kvm", "show whether KVM runs the guest", |_, out| {
        out.push_str("kvm support: enabled\n");
        Ok(())
    }),
];

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command::plain("query-status", |control, _| {
        let (word, _) = status(control);
        Ok(Reply::Value(json!({"status": word, "running": word == "running"})))
    }),
    qmp::Command::plain("query-version", |_, _| Ok(Reply::Value(version()))),
    qmp::Command::plain("query-kvm", |_, _| Ok(Reply::Value(json!({"enabled": true, "present": true})))),
];

/// The program's version as QMP has it.
pub(super) fn version() -> Value {
    let part = |text: &str| text.parse().unwrap_or(0u64);
    json!({
        "qemu": {
            "micro": part(env!("CARGO_PKG_VERSION_PATCH")),
            "minor": part(env!("CARGO_PKG_VERSION_MINOR")),
            "major": part(env!("CARGO_PKG_VERSION_MAJOR")),
        },
        "package": concat!("cowvm ", env!("CARGO_PKG_VERSION")),
    })
}

/// QMP's word for the state, and the human monitor's.
fn status(control: &Control) -> (&'static str, &'static str) {
    match control.machine.status() {
        Status::Running => ("running", "running"),
        Status::Paused => ("paused", "paused"),
        Status::IoError => ("io-error", "paused (io-error)"),
    }
}
