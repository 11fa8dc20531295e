//! How far long work is that drivers do on their own: a check, an amendment, preallocation. They tell it to their
//! engine, which belongs to one command or one drive, and whoever waits for the work listens there.

use std::cell::RefCell;
use std::rc::Rc;

type Listener = dyn Fn(u64, u64);

/// The listener of an engine.
#[derive(Default)]
pub(super) struct Work {
    listener: RefCell<Option<Rc<Listener>>>,
}

impl Work {
    pub(super) fn listen(&self, listener: Rc<Listener>) {
        self.listener.replace(Some(listener));
    }

    pub(super) fn tell(&self, done: u64, total: u64) {
        // It may ask the engine for anything: nothing stays borrowed.
        let listener = self.listener.borrow().clone();
        if let Some(listener) = listener {
            listener(done, total);
        }
    }
}
