//! The main thread while a guest runs: an event loop over the keyboard, the monitors, signals and the guest's
//! requests.
//!
//! ```text
//!   keyboard, prompt, sockets ─▶ monitor::Control ─▶ machine
//!   quit, Ctrl-A X, signals, power-off, failure ─▶ end
//! ```

use crate::cli::keyboard::Keyboard;
use crate::cli::prompt::Prompt;
use crate::cli::signals::Signals;
use crate::monitor::server::Server;
use crate::monitor::{Control, events};
use crate::vm::run_state::Request;
use crate::vm::{Error, Result};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

/// What an event is about.
pub(super) const STDIN: u32 = 0;
const SIGNAL: u32 = 1;
const REQUEST: u32 = 2;
/// Stdin should be looked at although epoll does not say so.
const STDIN_AGAIN: u32 = 3;
/// Work that a command began is done.
const WAKE: u32 = 4;
const PROMPT: u32 = 5;
/// The sockets of monitors, from here on.
pub(super) const SOCKETS: u32 = 16;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The user or the guest wanted it so; the reason as in the event SHUTDOWN.
    Quit(&'static str),
    /// A signal, by number.
    Signal(u32),
    /// Something failed; the text says what.
    Failure(String),
}

impl End {
    /// The reason in the event SHUTDOWN.
    fn reason(&self) -> &'static str {
        match self {
            End::Quit(reason) => reason,
            End::Signal(_) => "host-signal",
            End::Failure(_) => "host-error",
        }
    }
}

/// A guest that runs, and who talks to it.
pub(super) struct Session {
    pub(super) control: Control,
    pub(super) keyboard: Keyboard,
    /// The monitor's own terminal.
    pub(super) prompt: Option<Prompt>,
    pub(super) server: Server,
    pub(super) signals: Signals,
    /// A reset ends the session.
    pub(super) no_reboot: bool,
    pub(super) end: Option<End>,
}

impl Session {
    /// Boots the guest and stays until the session ends; then the machine is closed.
    ///
    /// # Errors
    /// When the guest cannot be booted, or a disk not be written back.
    pub(super) fn run(mut self) -> Result<End> {
        self.control.machine.start()?;
        let broken = |error: event_manager::Error| Error::new(format!("the event loop failed: {error}"));
        let mut manager = EventManager::new().map_err(broken)?;
        let id = manager.add_subscriber(self);
        let end = loop {
            manager.run().map_err(broken)?;
            if let Some(end) = manager.subscriber_mut(id).map_err(broken)?.end.take() {
                break end;
            }
        };
        let mut session = manager.remove_subscriber(id).map_err(broken)?;
        session.control.close()?;
        Ok(end)
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    fn serve_request(&mut self) {
        let machine = &mut self.control.machine;
        match machine.take_request() {
            None => {}
            Some(Request::DiskError) => machine.stop_for_disk_error(),
            Some(Request::PowerOff) => self.finish(End::Quit("guest-shutdown")),
            Some(Request::Reset) if self.no_reboot => self.finish(End::Quit("guest-reset")),
            Some(Request::Reset) => {
                if let Err(error) = machine.reset() {
                    self.finish(End::Failure(error.to_string()));
                }
            }
            Some(Request::Failure(what)) => self.finish(End::Failure(what)),
        }
    }

    /// Work of the drives is done: whoever waited for it goes on.
    fn wake(&mut self, ops: &mut EventOps) {
        self.control.advance();
        self.keyboard.poll(&mut self.control, ops);
        self.server.poll(&mut self.control, ops);
        if let Some(prompt) = &mut self.prompt {
            prompt.poll();
        }
    }

    /// After every event: programs hear what happened, and the last of it is the end.
    fn tell(&mut self, ops: &mut EventOps) {
        if let Some(reason) = self.control.wants_quit() {
            self.finish(End::Quit(reason));
        }
        for event in self.control.take_events() {
            self.server.tell(&event, ops);
        }
        for notice in self.control.take_notices() {
            eprintln!("cowvm: {notice}");
        }
        if let Some(end) = &self.end {
            self.server.tell(&events::shutdown(end.reason()), ops);
        }
    }

    fn watch(&mut self, ops: &mut EventOps) -> std::result::Result<(), event_manager::Error> {
        ops.add(Events::with_data(&self.signals, SIGNAL, EventSet::IN))?;
        ops.add(Events::with_data(self.control.machine.requested(), REQUEST, EventSet::IN))?;
        ops.add(Events::with_data(self.keyboard.again(), STDIN_AGAIN, EventSet::IN))?;
        ops.add(Events::with_data(self.control.wake(), WAKE, EventSet::IN))?;
        if let Some(prompt) = &self.prompt {
            ops.add(Events::with_data(prompt.typed(), PROMPT, EventSet::IN))?;
        }
        self.server.watch(ops)
    }
}

impl MutEventSubscriber for Session {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.end.is_some() {
            return;
        }
        match events.data() {
            STDIN | STDIN_AGAIN => self.keyboard.read(&mut self.control, ops),
            SIGNAL => {
                if let Some(signal) = self.signals.next() {
                    self.finish(End::Signal(signal));
                }
            }
            REQUEST => self.serve_request(),
            WAKE => self.wake(ops),
            PROMPT => {
                if let Some(prompt) = &mut self.prompt {
                    prompt.serve(&mut self.control);
                }
            }
            _ => self.server.process(events, &mut self.control, ops),
        }
        self.tell(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.watch(ops) {
            self.finish(End::Failure(format!("the event loop failed: {error}")));
        }
        self.keyboard.begin(ops);
    }
}
