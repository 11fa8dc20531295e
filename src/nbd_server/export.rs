//! What is offered under a name: a drive, and how it may be used.

use crate::block::drive::Drive;
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{BlockSizes, MAX_TRANSFER, context, export};
use async_lock::{Semaphore, SemaphoreGuardArc};
use std::sync::Arc;

/// Most clients of an export that says nothing of them.
const MANY: usize = 1024;

/// A context of block status that an export has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// Holes and zeros.
    Allocation,
    /// How deep in the backing chain the content is decided.
    Depth,
    /// A dirty bitmap, by its name.
    Bitmap(String),
}

impl Context {
    /// Its name on the wire.
    pub fn name(&self) -> String {
        match self {
            Context::Allocation => context::ALLOCATION.to_owned(),
            Context::Depth => context::DEPTH.to_owned(),
            Context::Bitmap(name) => format!("{}{name}", context::BITMAP),
        }
    }

    /// Whether a query of LIST_META_CONTEXT asks for it: its name, or the beginning up to a colon.
    pub(super) fn matches(&self, query: &str) -> bool {
        let name = self.name();
        query == name || query.ends_with(':') && name.starts_with(query)
    }
}

/// How a drive is offered.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Its name; empty for the one that clients get who name none.
    pub name: String,
    /// A text for people.
    pub description: Option<String>,
    /// Writes are refused, also where the drive could take them.
    pub read_only: bool,
    /// Most clients at a time; 0: as many as come.
    pub shared: usize,
    /// The context of allocation depth is offered.
    pub allocation_depth: bool,
    /// The dirty bitmaps that are offered.
    pub bitmaps: Vec<String>,
}

/// A drive that is offered.
pub struct Export {
    offer: Offer,
    drive: Arc<Drive>,
    contexts: Vec<Context>,
    clients: Arc<Semaphore>,
    /// As many as have a place, and one.
    present: Arc<()>,
    /// Closed when all clients are to leave.
    stop: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

/// A client's place at an export. It is given back when the client has left and nothing of what it asked for goes on.
#[must_use]
pub(super) struct Place {
    _guard: SemaphoreGuardArc,
    _present: Arc<()>,
}

impl Export {
    /// Offers `drive`.
    pub fn new(drive: &Arc<Drive>, offer: Offer) -> Arc<Export> {
        let mut contexts = vec![Context::Allocation];
        contexts.extend(offer.allocation_depth.then_some(Context::Depth));
        contexts.extend(offer.bitmaps.iter().cloned().map(Context::Bitmap));
        let clients = if offer.shared == 0 { MANY } else { offer.shared };
        Arc::new(Export {
            drive: drive.clone(),
            contexts,
            clients: Arc::new(Semaphore::new(clients)),
            offer,
            present: Arc::default(),
            stop: async_channel::bounded(1),
        })
    }

    /// How it is offered.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The drive.
    pub(super) fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// The contexts that there are.
    pub(super) fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// Whether writes are refused.
    pub(super) fn read_only(&self) -> bool {
        self.offer.read_only || self.drive.read_only()
    }

    /// Waits until one more client is allowed.
    pub(super) async fn admit(&self) -> Place {
        let guard = self.clients.acquire_arc().await;
        Place { _guard: guard, _present: self.present.clone() }
    }

    /// A place, if one is free now.
    pub(super) fn admit_now(&self) -> Option<Place> {
        let guard = self.clients.try_acquire_arc()?;
        Some(Place { _guard: guard, _present: self.present.clone() })
    }

    /// Whether it has clients.
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.present) > 1
    }

    /// Sends all clients away, and those who come.
    pub(super) fn end(&self) {
        self.stop.1.close();
    }

    /// Closed by [`Export::end`].
    pub(super) fn stop(&self) -> async_channel::Receiver<()> {
        self.stop.1.clone()
    }

    /// Transmission flags of connections with such headers.
    pub(super) fn flags(&self, headers: Headers) -> u16 {
        let mut flags = export::HAS_FLAGS | export::FLUSH | export::FUA | export::CACHE;
        if self.read_only() {
            flags |= export::READ_ONLY;
        } else {
            flags |= export::TRIM | export::WRITE_ZEROES | export::FAST_ZERO;
        }
        // With one client at a time there is nothing to promise.
        if self.offer.shared != 1 {
            flags |= export::MULTI_CONN;
        }
        flags
            | match headers {
                Headers::Simple => 0,
                Headers::Structured => export::DF,
                Headers::Extended => export::DF | export::BLOCK_STATUS_PAYLOAD,
            }
    }

    /// Constraints. Requests of any bytes are taken: the pipeline aligns them.
    pub(super) fn blocks(&self) -> BlockSizes {
        BlockSizes { minimum: 1, preferred: 4096, maximum: MAX_TRANSFER }
    }
}
