//! Clients that wait for a place at an export. That is not their fault: the time of their handshake does not run, and
//! others are sent away before them. There is a limit to them all the same.

use std::cell::Cell;
use std::rc::Rc;

/// Most of them at a time: half of those who may be in their handshake.
const MOST: usize = 128;

/// Whether a client waits, and how many do.
#[derive(Default)]
pub(super) struct Patience {
    waits: Cell<bool>,
    all: Rc<Cell<usize>>,
}

impl Patience {
    /// That of another client.
    pub(super) fn of_another(&self) -> Rc<Patience> {
        Rc::new(Patience { waits: Cell::new(false), all: self.all.clone() })
    }

    /// Whether the client waits.
    pub(super) fn is_shown(&self) -> bool {
        self.waits.get()
    }

    /// The client begins to wait, unless too many do.
    pub(super) fn begin(&self) -> Option<Waiting<'_>> {
        if self.all.get() >= MOST {
            return None;
        }
        self.waits.set(true);
        self.all.set(self.all.get() + 1);
        Some(Waiting(self))
    }
}

/// A client waits while this is there.
#[must_use]
pub(super) struct Waiting<'a>(&'a Patience);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waits.set(false);
        self.0.all.set(self.0.all.get() - 1);
    }
}
