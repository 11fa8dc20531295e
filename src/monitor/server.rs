//! Monitors on sockets: who listens, who is connected, and what the event loop is told to watch.
//!
//! ```text
//!   listener ─ accept ─▶ client: stream ─▶ dialogue ─▶ stream
//!   event ───────────────▶ every client's dialogue
//! ```
//! A client is read only while no command of it is under way and it takes its answers, so that one that floods or
//! sleeps costs a buffer and nothing else. A browser is no client: any page could have it send commands.

use super::hmp::Hmp;
use super::qmp::Qmp;
use super::socket::{Address, Listener, Received, Stream};
use super::{Control, Dialogue, Result};
use event_manager::{EventOps, EventSet, Events};
use serde_json::Value;
use std::collections::BTreeMap;

/// Clients of one listener; more are turned away.
const CLIENTS: usize = 16;
/// Bytes that are read from a client at a time.
const CHUNK: usize = 4096;

/// Which language a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// For people.
    Hmp,
    /// For programs.
    Qmp,
}

impl Language {
    fn dialogue(self) -> Box<dyn Dialogue> {
        match self {
            Language::Hmp => Box::new(Hmp::for_socket()),
            Language::Qmp => Box::new(Qmp::default()),
        }
    }
}

struct Client {
    stream: Stream,
    dialogue: Box<dyn Dialogue>,
    listener: u32,
    /// It has sent something.
    heard: bool,
    /// It sends no more, and goes when it has all answers.
    ended: bool,
    /// Nobody is there any more.
    gone: bool,
    watched: EventSet,
}

/// All sockets of a process. Its events have the numbers from `first` on.
pub struct Server {
    first: u32,
    listeners: Vec<(Language, Listener)>,
    clients: BTreeMap<u32, Client>,
    next: u32,
}

impl Server {
    /// Listens at all addresses.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn bind(first: u32, addresses: &[(Language, Address)]) -> Result<Server> {
        let bind = |(language, address): &(Language, Address)| Ok((*language, Listener::bind(address)?));
        let listeners = addresses.iter().map(bind).collect::<Result<Vec<_>>>()?;
        let next = first + listeners.len() as u32;
        Ok(Server { first, listeners, clients: BTreeMap::new(), next })
    }

    /// Has the event loop watch the listeners.
    ///
    /// # Errors
    /// When the event loop refuses.
    pub fn watch(&self, ops: &mut EventOps) -> std::result::Result<(), event_manager::Error> {
        let mut numbered = (self.first..).zip(&self.listeners);
        numbered.try_for_each(|(number, (_, listener))| {
            ops.add(Events::with_data(listener, number, EventSet::IN))
        })
    }

    /// Serves an event of one of the sockets.
    pub fn process(&mut self, events: Events, control: &mut Control, ops: &mut EventOps) {
        let number = events.data();
        let listener = number.checked_sub(self.first).and_then(|index| self.listeners.get(index as usize));
        if listener.is_some() {
            return self.accept(number, ops);
        }
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.stream.flush();
        // What was sent before a hang-up is served, unless there is something to be finished first.
        let hung_up = events.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR);
        match client.watched.contains(EventSet::IN) {
            true => client.receive(control),
            false => client.gone = hung_up,
        }
        self.settle(number, ops);
    }

    /// Goes on with what waited for work that is done now.
    pub fn poll(&mut self, control: &mut Control, ops: &mut EventOps) {
        self.for_each(ops, |client| client.talk(|dialogue, out| dialogue.poll(control, out)));
    }

    /// Tells everybody of an event.
    pub fn tell(&mut self, event: &Value, ops: &mut EventOps) {
        self.for_each(ops, |client| client.talk(|dialogue, out| dialogue.tell(event, out)));
    }

    fn for_each(&mut self, ops: &mut EventOps, mut act: impl FnMut(&mut Client)) {
        let numbers: Vec<u32> = self.clients.keys().copied().collect();
        for number in numbers {
            self.clients.get_mut(&number).map(&mut act);
            self.settle(number, ops);
        }
    }

    fn accept(&mut self, number: u32, ops: &mut EventOps) {
        let Some((language, listener)) = self.listeners.get((number - self.first) as usize) else { return };
        let Some(stream) = listener.accept() else { return };
        if self.clients.values().filter(|client| client.listener == number).count() == CLIENTS {
            return;
        }
        let mut client = Client {
            stream,
            dialogue: language.dialogue(),
            listener: number,
            heard: false,
            ended: false,
            gone: false,
            watched: EventSet::IN,
        };
        client.stream.send(&client.dialogue.greeting());
        let number = self.next;
        if ops.add(Events::with_data(&client.stream, number, EventSet::IN)).is_ok() {
            self.clients.insert(number, client);
            // Nobody connects 2^32 times; and then the oldest are gone.
            self.next = self.next.wrapping_add(1).max(self.first + self.listeners.len() as u32);
        }
    }

    /// Watches what a client waits for now, or lets it go.
    fn settle(&mut self, number: u32, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let wanted = client.wanted();
        let over = client.is_over()
            || wanted != client.watched
                && ops.modify(Events::with_data(&client.stream, number, wanted)).is_err();
        client.watched = wanted;
        if over && let Some(client) = self.clients.remove(&number) {
            // It was added, so it can be removed.
            let _ = ops.remove(Events::with_data(&client.stream, number, EventSet::IN));
        }
    }
}

impl Client {
    fn receive(&mut self, control: &mut Control) {
        match self.stream.receive(CHUNK) {
            Received::Bytes(bytes) if !self.heard && is_http(&bytes) => self.gone = true,
            Received::Bytes(bytes) => {
                self.heard = true;
                self.talk(|dialogue, out| dialogue.feed(&bytes, control, out));
            }
            Received::Nothing => {}
            Received::End => self.ended = true,
        }
    }

    fn talk(&mut self, act: impl FnOnce(&mut dyn Dialogue, &mut Vec<u8>)) {
        let mut out = Vec::new();
        act(&mut *self.dialogue, &mut out);
        if !out.is_empty() {
            self.stream.send(&out);
        }
    }

    fn wanted(&self) -> EventSet {
        let mut wanted = EventSet::empty();
        if !self.stream.is_flushed() {
            wanted |= EventSet::OUT;
        } else if !self.ended && !self.dialogue.is_busy() {
            wanted |= EventSet::IN;
        }
        wanted
    }

    fn is_over(&self) -> bool {
        let answered = self.ended && !self.dialogue.is_busy() && self.stream.is_flushed();
        self.stream.is_broken() || self.gone || answered
    }
}

/// Whether a conversation begins as one with a web server does: `POST /`. No command does.
fn is_http(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    method > 0 && bytes[method..].starts_with(b" /")
}
