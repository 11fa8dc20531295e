//! Requests that fail: what is done about them, and who hears of it.
//!
//! ```text
//!   request fails ─▶ Judge::judge ─▶ Action: report │ ignore │ stop     (for the device)
//!                        └──────────▶ listener: DiskError               (for the machine and its users)
//! ```
//! Only what the host or the image did wrong is judged. A request that no disk could serve (past the end, a write to
//! a read-only disk) is the guest's fault and always reported to it.

use super::Drive;
use crate::block::options::{ErrorPolicy, OnError};
use crate::block::{Error, Kind};
use std::sync::OnceLock;

/// What a request wants of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes of it.
    Read,
    /// That bytes, or zeros, are put there.
    Write,
    /// That all is durable.
    Flush,
    /// That a range is given up.
    Discard,
}

/// What a device does with a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tells the guest.
    Report,
    /// Tells the guest that it was done.
    Ignore,
    /// Keeps it; the guest is being stopped, and the request is done again when it goes on.
    Stop,
}

/// A request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// The drive's name.
    pub drive: String,
    /// What was wanted.
    pub operation: Operation,
    /// What is done about it.
    pub action: Action,
    /// The host has no room.
    pub no_space: bool,
    /// What the host or the image said.
    pub reason: String,
}

/// Whoever wants to know of errors. Called from the drive's thread and from vCPU threads; it must not wait.
pub type Listener = Box<dyn Fn(DiskError) + Send + Sync>;

/// Judges the failures of one drive.
pub(super) struct Judge {
    policy: ErrorPolicy,
    listener: OnceLock<Listener>,
}

impl Judge {
    pub(super) fn new(policy: ErrorPolicy) -> Judge {
        Judge { policy, listener: OnceLock::new() }
    }

    /// What is to be done; the listener hears of it first.
    pub(super) fn judge(&self, drive: &str, operation: Operation, error: &Error) -> Action {
        let kind = error.kind();
        if matches!(
            kind,
            Kind::OutOfRange
                | Kind::ReadOnly
                | Kind::Unsupported
                | Kind::InvalidArgument
                | Kind::NotFound
                | Kind::NoMedium
        ) {
            return Action::Report;
        }
        let (action, no_space) = (action(self.policy, operation, kind), kind == Kind::NoSpace);
        if let Some(listener) = self.listener.get() {
            let (drive, reason) = (drive.to_owned(), error.message().to_owned());
            listener(DiskError { drive, operation, action, no_space, reason });
        }
        action
    }
}

fn action(policy: ErrorPolicy, operation: Operation, kind: Kind) -> Action {
    let policy = if operation == Operation::Read { policy.read } else { policy.write };
    match policy {
        OnError::Report => Action::Report,
        OnError::Ignore => Action::Ignore,
        OnError::Stop => Action::Stop,
        OnError::Enospc if kind == Kind::NoSpace => Action::Stop,
        OnError::Enospc => Action::Report,
    }
}

impl Drive {
    /// Has `listener` called for each request that fails. Only the first that is set counts.
    pub fn listen_for_errors(&self, listener: Listener) {
        // There is one machine around a drive.
        let _ = self.facts.judge.listener.set(listener);
    }

    /// What a device has to do about a request that failed with `error`.
    pub fn judge(&self, operation: Operation, error: &Error) -> Action {
        self.facts.judge.judge(&self.facts.id, operation, error)
    }
}

impl super::Local {
    /// As [`Drive::judge`].
    pub fn judge(&self, operation: Operation, error: &Error) -> Action {
        self.facts.judge.judge(&self.facts.id, operation, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn each_policy_does_what_qemus_does() {
        let errors = [Error::new(Kind::NoSpace, "full"), Error::new(Kind::Io, "broken")];
        for (word, expected) in [
            ("report", [Action::Report, Action::Report]),
            ("ignore", [Action::Ignore, Action::Ignore]),
            ("stop", [Action::Stop, Action::Stop]),
            ("enospc", [Action::Stop, Action::Report]),
        ] {
            let judge = Judge::new(ErrorPolicy::parse(None, Some(word)).unwrap());
            for operation in [Operation::Write, Operation::Flush, Operation::Discard] {
                let found = [0, 1].map(|index| judge.judge("hda", operation, &errors[index]));
                assert_eq!(found, expected, "{word} {operation:?}");
            }
            assert_eq!(judge.judge("hda", Operation::Read, &errors[0]), Action::Report);
        }
        assert!(ErrorPolicy::parse(Some("enospc"), None).is_err());
    }

    #[test]
    fn the_listener_hears_of_failures_but_not_of_the_guests_mistakes() {
        let judge = Judge::new(ErrorPolicy::parse(Some("stop"), None).unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = heard.clone();
        assert!(judge.listener.set(Box::new(move |error| list.lock().unwrap().push(error))).is_ok());
        assert_eq!(judge.judge("a", Operation::Read, &Error::new(Kind::OutOfRange, "far")), Action::Report);
        assert_eq!(judge.judge("a", Operation::Read, &Error::new(Kind::Io, "bad")), Action::Stop);
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), 1);
        assert_eq!((heard[0].reason.as_str(), heard[0].action), ("bad", Action::Stop));
    }
}
