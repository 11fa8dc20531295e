//! The main thread while a guest runs: an event loop over stdin, signals and the guest's requests.
//!
//! ```text
//!   stdin ─▶ Escape ─┬▶ Console (guest has the keyboard)
//!                    └▶ line editor ─▶ monitor (monitor has it)
//!   signals, Ctrl-A X, quit, power-off, failure ─▶ end
//! ```
//!
//! A terminal is read always, so that Ctrl-A works on a guest that does not read; a pipe or file only as far as
//! the guest keeps up, so that no script is lost.

use crate::cli::signals::Signals;
use crate::cli::terminal::Stdin;
use crate::monitor::line::Editor;
use crate::monitor::mux::{self, Escape};
use crate::monitor::{self, Context, PROMPT};
use crate::vm::console::Console;
use crate::vm::machine::Machine;
use crate::vm::run_state::Request;
use crate::vm::{Error, Result};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that are read from stdin at a time.
const CHUNK: usize = 1024;

/// What an event is about.
const STDIN: u32 = 0;
const SIGNAL: u32 = 1;
const REQUEST: u32 = 2;
/// Stdin should be looked at although epoll does not say so.
const INPUT: u32 = 3;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The user or the guest wanted it so.
    Quit,
    /// A signal, by number.
    Signal(u32),
    /// Something failed; the text says what.
    Failure(String),
}

/// A guest that runs, and who talks to it.
pub(super) struct Session {
    machine: Machine,
    console: Arc<Console>,
    signals: Signals,
    no_reboot: bool,
    stdin: Option<Stdin>,
    /// Whether epoll watches stdin. It refuses plain files, which are always ready.
    watched: bool,
    pollable: bool,
    input: EventFd,
    escape: Escape,
    editor: Editor,
    monitor: bool,
    end: Option<End>,
}

impl Session {
    /// A session on stdin and `console`. With `no_reboot`, a reset ends it.
    ///
    /// # Errors
    /// When the host has no file descriptor left.
    pub(super) fn new(
        machine: Machine,
        console: Arc<Console>,
        signals: Signals,
        no_reboot: bool,
    ) -> Result<Session> {
        let input = EventFd::new(EFD_NONBLOCK).map_err(|error| Error::new(format!("eventfd: {error}")))?;
        Ok(Session {
            machine,
            console,
            signals,
            no_reboot,
            stdin: Stdin::open(),
            watched: false,
            pollable: true,
            input,
            escape: Escape::default(),
            editor: Editor::default(),
            monitor: false,
            end: None,
        })
    }

    /// Boots the guest and stays until the session ends; then the machine is closed.
    ///
    /// # Errors
    /// When the guest cannot be booted, or a disk not be written back.
    pub(super) fn run(mut self) -> Result<End> {
        self.machine.start()?;
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
        session.machine.close()?;
        Ok(end)
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// Reads stdin as far as it may be read now.
    fn read_stdin(&mut self, ops: &mut EventOps) {
        let Some(stdin) = &mut self.stdin else { return };
        let limit = match (stdin.is_terminal(), self.monitor) {
            (true, _) => CHUNK,
            (false, false) => self.console.input_room().min(CHUNK),
            // What follows the key that leaves the monitor is the guest's, and may have to wait.
            (false, true) => 1,
        };
        if limit == 0 {
            self.unwatch(ops);
            return self.console.notify_room(&self.input);
        }
        match stdin.read(limit) {
            None => self.watch(ops),
            Some(bytes) if bytes.is_empty() => {
                self.unwatch(ops);
                self.stdin = None;
            }
            Some(bytes) => {
                bytes.into_iter().for_each(|byte| self.typed(byte));
                self.watch(ops);
            }
        }
    }

    /// Comes back when there is more to read.
    fn watch(&mut self, ops: &mut EventOps) {
        let Some(stdin) = &self.stdin else { return };
        if self.pollable && !self.watched {
            self.watched = ops.add(Events::with_data(stdin, STDIN, EventSet::IN)).is_ok();
            self.pollable = self.watched;
        }
        if !self.pollable {
            // It fails only when it is readable already.
            let _ = self.input.write(1);
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.watched) {
            // It was added, so it can be removed.
            let _ = ops.remove(Events::with_data(stdin, STDIN, EventSet::IN));
            self.watched = false;
        }
    }

    fn typed(&mut self, byte: u8) {
        match self.escape.feed(byte) {
            None => {}
            Some(mux::Event::Exit) => self.finish(End::Quit),
            Some(mux::Event::Help) => self.show(mux::HELP),
            Some(mux::Event::Toggle) => self.toggle(),
            Some(mux::Event::Byte(byte)) if self.monitor => self.monitor_byte(byte),
            Some(mux::Event::Byte(byte)) => self.console.push_input(&[byte]),
        }
    }

    fn toggle(&mut self) {
        self.monitor = !self.monitor;
        match self.monitor {
            true => self.show(&format!("\ncowvm monitor - type 'help' for a list of commands\n{PROMPT}")),
            false => self.show("\n"),
        }
    }

    fn monitor_byte(&mut self, byte: u8) {
        let mut shown = Vec::new();
        if let Some(line) = self.editor.feed(byte, &mut shown) {
            let mut context = Context { machine: &mut self.machine, quit: false };
            // A vector takes everything.
            let _ = monitor::execute(&mut context, &line, &mut shown);
            match context.quit {
                true => self.finish(End::Quit),
                false => shown.extend(PROMPT.as_bytes()),
            }
        }
        self.console.write(&shown);
    }

    fn show(&self, text: &str) {
        self.console.write(text.as_bytes());
    }

    fn serve_request(&mut self) {
        match self.machine.take_request() {
            None => {}
            Some(Request::PowerOff) => self.finish(End::Quit),
            Some(Request::Reset) if self.no_reboot => self.finish(End::Quit),
            Some(Request::Reset) => {
                if let Err(error) = self.machine.reset() {
                    self.finish(End::Failure(error.to_string()));
                }
            }
            Some(Request::Failure(what)) => self.finish(End::Failure(what)),
        }
    }
}

impl MutEventSubscriber for Session {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            STDIN => self.read_stdin(ops),
            SIGNAL => {
                if let Some(signal) = self.signals.next() {
                    self.finish(End::Signal(signal));
                }
            }
            REQUEST => self.serve_request(),
            INPUT => {
                // Empty when it was read before.
                let _ = self.input.read();
                self.read_stdin(ops);
            }
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let fixed = [
            Events::with_data(&self.signals, SIGNAL, EventSet::IN),
            Events::with_data(self.machine.requested(), REQUEST, EventSet::IN),
            Events::with_data(&self.input, INPUT, EventSet::IN),
        ];
        for events in fixed {
            if let Err(error) = ops.add(events) {
                self.finish(End::Failure(format!("the event loop failed: {error}")));
            }
        }
        self.watch(ops);
    }
}
