//! What is offered under a name: a drive, and how it may be used.

use crate::block::drive::Drive;
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
}

impl Export {
    /// Offers `drive`.
    pub fn new(drive: &Arc<Drive>, offer: Offer) -> Arc<Export> {
        let mut contexts = vec![Context::Allocation];
        contexts.extend(offer.allocation_depth.then_some(Context::Depth));
        contexts.extend(offer.bitmaps.iter().cloned().map(Context::Bitmap));
        let clients = if offer.shared == 0 { MANY } else { offer.shared };
        Arc::new(Export { drive: drive.clone(), contexts, clients: Arc::new(Semaphore::new(clients)), offer })
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
    pub(super) async fn admit(&self) -> SemaphoreGuardArc {
        self.clients.acquire_arc().await
    }

    /// Transmission flags; `chunks` were agreed on.
    pub(super) fn flags(&self, chunks: bool) -> u16 {
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
        flags | if chunks { export::DF } else { 0 }
    }

    /// Constraints. Requests of any bytes are taken: the pipeline aligns them.
    pub(super) fn blocks(&self) -> BlockSizes {
        BlockSizes { minimum: 1, preferred: 4096, maximum: MAX_TRANSFER }
    }
}
