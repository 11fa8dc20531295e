//! Events: what happens by itself, as QMP tells it.

use super::Control;
use crate::block::drive::{Action, DiskError, Operation};
use crate::vm::machine::Event;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

impl Control {
    /// Something has happened now.
    pub(super) fn emit(&mut self, name: &str, data: Option<Value>) {
        self.emit_of(SystemTime::now(), name, data);
    }

    fn emit_of(&mut self, when: SystemTime, name: &str, data: Option<Value>) {
        self.events.push(event(when, name, data));
    }
}

/// The last event: why the process ends, and whether the guest wanted it.
pub fn shutdown(reason: &str) -> Value {
    let guest = reason.starts_with("guest");
    event(SystemTime::now(), "SHUTDOWN", Some(json!({"guest": guest, "reason": reason})))
}

fn event(when: SystemTime, name: &str, data: Option<Value>) -> Value {
    let since = when.duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = json!({"seconds": since.as_secs(), "microseconds": since.subsec_micros()});
    let mut event = json!({"timestamp": timestamp, "event": name});
    if let Some(data) = data {
        event["data"] = data;
    }
    event
}

/// Turns what the machine says into events.
pub(super) fn note(control: &mut Control, when: SystemTime, event: &Event) {
    match event {
        Event::Stop => control.emit_of(when, "STOP", None),
        Event::Loaded => control.failing.clear(),
        Event::Resume => {
            control.failing.clear();
            control.emit_of(when, "RESUME", None);
        }
        Event::Reset { guest } => {
            control.failing.clear();
            let reason = if *guest { "guest-reset" } else { "host-qmp-system-reset" };
            control.emit_of(when, "RESET", Some(json!({"guest": guest, "reason": reason})));
        }
        Event::TrayMoved { drive, open } => {
            let data = json!({"device": drive, "tray-open": open, "id": drive});
            control.emit_of(when, "DEVICE_TRAY_MOVED", Some(data));
        }
        Event::DiskError(error) => {
            if error.action == Action::Stop
                && control.failing.insert(error.drive.clone(), error.no_space).is_none()
            {
                let DiskError { drive, reason, .. } = error;
                control.notices.push(format!(
                    "{drive}: {reason}; the guest is stopped: mend it and type 'cont' in the monitor"
                ));
            }
            control.emit_of(when, "BLOCK_IO_ERROR", Some(disk_error(error)));
        }
    }
}

fn disk_error(error: &DiskError) -> Value {
    let action = match error.action {
        Action::Report => "report",
        Action::Ignore => "ignore",
        Action::Stop => "stop",
    };
    json!({
        "device": error.drive,
        "node-name": super::block_info::node_name(&error.drive),
        "operation": if error.operation == Operation::Read { "read" } else { "write" },
        "action": action,
        "nospace": error.no_space,
        "reason": error.reason,
    })
}
