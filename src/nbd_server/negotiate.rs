//! The server's side of the handshake, until the client has entered an export or is gone.
//!
//! Bounds: the data of an option by [`MAX_DATA`] (more is passed over and refused, much more ends the connection);
//! the time by [`super::Server`].

use super::export::{Context, Export, Place};
use super::patience::Patience;
use crate::block::aio::{Inbox, Socket};
use crate::block::{Buffer, tls};
use crate::util::nbd::handshake::{self, Info};
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{GREETING, MAX_STRING, NEWSTYLE, OptionHeader, ZEROES, hello, info, option, reply};
use futures_util::future::{Either, select};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

/// Longest data of an option that is looked at, in bytes.
const MAX_DATA: u32 = 64 << 10;
/// Longest data of an option that is passed over, in bytes.
const MAX_SKIP: u32 = 16 << 20;

/// What was agreed on.
pub(super) struct Agreed {
    pub(super) export: Arc<Export>,
    pub(super) headers: Headers,
    /// The contexts that the client wants, with their numbers on the wire.
    pub(super) contexts: Vec<(u32, Context)>,
    /// The client's place among those of the export.
    pub(super) place: Place,
}

/// A client in its handshake.
pub(super) struct Negotiation<'a> {
    socket: &'a Socket,
    inbox: &'a mut Inbox,
    exports: &'a dyn Fn() -> Vec<Arc<Export>>,
    /// Nothing is told or served without TLS.
    tls: Option<&'a tls::Server>,
    secured: bool,
    patience: Rc<Patience>,
    headers: Headers,
    no_zeroes: bool,
    contexts: Option<(String, Vec<(u32, Context)>)>,
}

/// What became of a client's wish for a place.
enum Admission {
    Granted(Place),
    /// Too many wait already.
    Refused,
    /// The client has gone.
    Left,
}

/// What an option led to.
enum Step {
    Next,
    Entered(Agreed),
    Ended,
}

impl<'a> Negotiation<'a> {
    pub(super) fn new(
        socket: &'a Socket,
        inbox: &'a mut Inbox,
        exports: &'a dyn Fn() -> Vec<Arc<Export>>,
        tls: Option<&'a tls::Server>,
        patience: Rc<Patience>,
    ) -> Negotiation<'a> {
        Negotiation {
            socket,
            inbox,
            exports,
            tls,
            secured: false,
            patience,
            headers: Headers::Simple,
            no_zeroes: false,
            contexts: None,
        }
    }

    /// Runs the handshake; `None` where the client leaves or must leave.
    pub(super) async fn run(mut self) -> io::Result<Option<Agreed>> {
        let offered = hello::FIXED | hello::NO_ZEROES;
        let greeting = [&GREETING.to_be_bytes()[..], &NEWSTYLE.to_be_bytes(), &offered.to_be_bytes()];
        self.send(&greeting.concat()).await?;
        let mut flags = [0; 4];
        self.inbox.exact(&mut flags).await?;
        let flags = u32::from_be_bytes(flags);
        if flags & !u32::from(offered) != 0 {
            return Ok(None);
        }
        self.no_zeroes = flags & u32::from(hello::NO_ZEROES) != 0;
        loop {
            match self.option().await? {
                Step::Next => {}
                Step::Entered(agreed) => return Ok(Some(agreed)),
                Step::Ended => return Ok(None),
            }
        }
    }

    async fn option(&mut self) -> io::Result<Step> {
        let mut header = [0; OptionHeader::SIZE];
        self.inbox.exact(&mut header).await?;
        let Some(header) = OptionHeader::parse(&header) else { return Ok(Step::Ended) };
        let which = header.option;
        let unsafe_yet = self.tls.is_some() && !self.secured;
        if which == option::EXPORT_NAME {
            // It has no answer that says no.
            return if unsafe_yet { Ok(Step::Ended) } else { self.export_name(header.len).await };
        }
        if header.len > MAX_DATA {
            if header.len > MAX_SKIP {
                return Ok(Step::Ended);
            }
            self.inbox.skip(u64::from(header.len)).await?;
            return self.refuse(which, reply::ERR_TOO_BIG, "the option is too long").await;
        }
        let data = self.inbox.bytes(header.len as usize).await?;
        match which {
            option::ABORT => {
                // The client need not wait for it.
                let _ = self.reply(which, reply::ACK, &[]).await;
                Ok(Step::Ended)
            }
            _ if unsafe_yet && which != option::STARTTLS => {
                let why = format!("Option 0x{which:x} not permitted before TLS");
                self.refuse(which, reply::ERR_TLS_REQD, &why).await
            }
            option::LIST | option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                self.refuse(which, reply::ERR_INVALID, "the option has no data").await
            }
            option::LIST => self.list().await,
            option::STRUCTURED_REPLY if self.headers == Headers::Extended => {
                self.refuse(which, reply::ERR_EXT_HEADER_REQD, "extended headers are on already").await
            }
            option::STRUCTURED_REPLY if self.headers == Headers::Structured => {
                self.refuse(which, reply::ERR_INVALID, "structured replies are on already").await
            }
            option::EXTENDED_HEADERS if self.headers == Headers::Extended => {
                self.refuse(which, reply::ERR_INVALID, "extended headers are on already").await
            }
            option::STRUCTURED_REPLY => self.agree(which, Headers::Structured).await,
            option::EXTENDED_HEADERS => self.agree(which, Headers::Extended).await,
            option::INFO | option::GO => self.go(which, &data).await,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta(which, &data).await,
            option::STARTTLS => self.start_tls().await,
            _ => self.refuse(which, reply::ERR_UNSUP, "unknown option").await,
        }
    }

    async fn start_tls(&mut self) -> io::Result<Step> {
        let which = option::STARTTLS;
        let Some(tls) = self.tls else {
            return self.refuse(which, reply::ERR_POLICY, "TLS not configured").await;
        };
        if self.secured {
            return self.refuse(which, reply::ERR_INVALID, "TLS already enabled").await;
        }
        // What somebody on the way has put behind the option must not pass for what comes over TLS.
        if !self.inbox.is_empty() {
            return Ok(Step::Ended);
        }
        self.reply(which, reply::ACK, &[]).await?;
        self.socket.start_tls(tls.session().map_err(io::Error::other)?).await?;
        self.secured = true;
        Ok(Step::Next)
    }

    async fn agree(&mut self, which: u32, headers: Headers) -> io::Result<Step> {
        // What was chosen under other headers is void.
        self.contexts = None;
        self.headers = headers;
        self.reply(which, reply::ACK, &[]).await
    }

    async fn list(&mut self) -> io::Result<Step> {
        for export in (self.exports)() {
            let offer = export.offer();
            let mut data = handshake::listed_data(&offer.name);
            data.extend(offer.description.as_deref().unwrap_or("").as_bytes());
            self.reply(option::LIST, reply::SERVER, &data).await?;
        }
        self.reply(option::LIST, reply::ACK, &[]).await
    }

    async fn go(&mut self, which: u32, data: &[u8]) -> io::Result<Step> {
        let Some((name, wanted)) = handshake::parse_go(data) else {
            return self.refuse(which, reply::ERR_INVALID, "the option makes no sense").await;
        };
        let Some(export) = self.find(name) else { return self.unknown(which, name).await };
        let place = match which {
            option::GO => match self.admit(&export).await {
                Admission::Granted(place) => Some(place),
                Admission::Refused => {
                    return self.refuse(which, reply::ERR_POLICY, "too many clients wait for a place").await;
                }
                Admission::Left => return Ok(Step::Ended),
            },
            _ => None,
        };
        let mut facts = Vec::new();
        if wanted.contains(&info::NAME) {
            facts.push(Info::Name(name.to_owned()));
        }
        if let Some(description) =
            export.offer().description.clone().filter(|_| wanted.contains(&info::DESCRIPTION))
        {
            facts.push(Info::Description(description));
        }
        facts.push(Info::BlockSize(export.blocks()));
        facts.push(self.facts(&export));
        for fact in facts {
            self.reply(which, reply::INFO, &fact.to_bytes()).await?;
        }
        self.reply(which, reply::ACK, &[]).await?;
        Ok(match place {
            Some(place) => Step::Entered(self.agreed(export, name, place)),
            None => Step::Next,
        })
    }

    /// The old way in: what cannot be done is answered by hanging up.
    async fn export_name(&mut self, len: u32) -> io::Result<Step> {
        if len as usize > MAX_STRING {
            return Ok(Step::Ended);
        }
        let name = self.inbox.bytes(len as usize).await?;
        let Some(name) = std::str::from_utf8(&name).ok() else { return Ok(Step::Ended) };
        let Some(export) = self.find(name) else { return Ok(Step::Ended) };
        let Admission::Granted(place) = self.admit(&export).await else { return Ok(Step::Ended) };
        let flags = export.flags(self.headers);
        let mut answer = [&export.drive().size().to_be_bytes()[..], &flags.to_be_bytes()].concat();
        if !self.no_zeroes {
            answer.resize(answer.len() + ZEROES, 0);
        }
        self.send(&answer).await?;
        Ok(Step::Entered(self.agreed(export, name, place)))
    }

    async fn meta(&mut self, which: u32, data: &[u8]) -> io::Result<Step> {
        if self.headers == Headers::Simple {
            return self.refuse(which, reply::ERR_INVALID, "structured replies come first").await;
        }
        if which == option::SET_META_CONTEXT {
            self.contexts = None;
        }
        let Some((name, queries)) = handshake::parse_contexts(data) else {
            return self.refuse(which, reply::ERR_INVALID, "the option makes no sense").await;
        };
        let Some(export) = self.find(name) else { return self.unknown(which, name).await };
        let listing = which == option::LIST_META_CONTEXT;
        let wanted = |context: &Context| match listing {
            true => queries.is_empty() || queries.iter().any(|query| context.matches(query)),
            false => queries.iter().any(|query| *query == context.name()),
        };
        let numbered = (1..).zip(export.contexts().iter().filter(|context| wanted(context)).cloned());
        let chosen: Vec<(u32, Context)> = numbered.collect();
        for (id, context) in &chosen {
            let data = handshake::context_data(if listing { 0 } else { *id }, &context.name());
            self.reply(which, reply::META_CONTEXT, &data).await?;
        }
        if !listing {
            self.contexts = Some((name.to_owned(), chosen));
        }
        self.reply(which, reply::ACK, &[]).await
    }

    fn find(&self, name: &str) -> Option<Arc<Export>> {
        (self.exports)().into_iter().find(|export| export.offer().name == name)
    }

    /// Waits for a place at the export. A client that says anything meanwhile, or hangs up, does not wait any more.
    async fn admit(&self, export: &Arc<Export>) -> Admission {
        if let Some(place) = export.admit_now() {
            return Admission::Granted(place);
        }
        let Some(_waiting) = self.patience.begin() else { return Admission::Refused };
        let (admitted, gone) = (pin!(export.admit()), pin!(self.socket.readable()));
        match select(admitted, gone).await {
            Either::Left((place, _)) => Admission::Granted(place),
            Either::Right(_) => Admission::Left,
        }
    }

    fn facts(&self, export: &Export) -> Info {
        Info::Export(export.drive().size(), export.flags(self.headers))
    }

    fn agreed(&mut self, export: Arc<Export>, name: &str, place: Place) -> Agreed {
        // Contexts were chosen for one export.
        let contexts = self.contexts.take().filter(|(of, _)| of == name);
        let contexts = contexts.map(|(_, contexts)| contexts).unwrap_or_default();
        Agreed { export, headers: self.headers, contexts, place }
    }

    async fn unknown(&mut self, which: u32, name: &str) -> io::Result<Step> {
        self.refuse(which, reply::ERR_UNKNOWN, &format!("export '{name}' not present")).await
    }

    async fn refuse(&mut self, which: u32, error: u32, why: &str) -> io::Result<Step> {
        let why = if handshake::fits(why) { why } else { "export not present" };
        self.reply(which, error, why.as_bytes()).await
    }

    async fn reply(&mut self, which: u32, kind: u32, data: &[u8]) -> io::Result<Step> {
        self.send(&handshake::reply_message(which, kind, data)).await?;
        Ok(Step::Next)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_all(&Buffer::from_bytes(bytes).iov(bytes.len())).await
    }
}
