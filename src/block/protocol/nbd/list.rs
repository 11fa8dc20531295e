//! What a server has: its exports, each with its facts.

use super::connect::connect;
use super::connection::Watch;
use super::export::Export;
use super::negotiate::{Greeted, Handshake};
use super::refusal::broken;
use super::target::Address;
use crate::block::aio::Engine;
use crate::block::tls;
use crate::block::{Error, Kind, Result};
use crate::util::nbd::option;
use crate::util::nbd::transmission::Headers;
use std::rc::Rc;
use std::time::Duration;

/// Most bytes of names that are kept.
const MAX_KEPT: usize = 16 << 20;
/// What a context counts for beside its name.
const CONTEXT: usize = 32;
/// How long a server may take for its greeting and the names, and then for what it has to say of each export.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its facts.
    pub export: Export,
    /// Contexts of block status.
    pub contexts: Vec<String>,
    /// The server is of the old style: it has this one export and negotiates nothing.
    pub oldstyle: bool,
}

/// Asks a server for its exports, over TLS if there are credentials.
///
/// # Errors
/// In qemu-nbd's words.
pub async fn list(engine: &Rc<Engine>, address: &Address, tls: Option<&tls::Client>) -> Result<Vec<Listed>> {
    let socket = Rc::new(connect(engine, address).await?);
    let mut watch = Watch::start(&socket, TIMEOUT);
    let listed = match Handshake::begin(&socket, tls).await {
        Ok(Greeted::Oldstyle(_, export)) => {
            Ok(vec![Listed { name: String::new(), export, contexts: Vec::new(), oldstyle: true }])
        }
        Ok(Greeted::Newstyle(handshake)) => ask(handshake, &mut watch).await,
        Err(error) => Err(error),
    };
    watch.judge(listed)
}

async fn ask(mut handshake: Handshake, watch: &mut Watch) -> Result<Vec<Listed>> {
    handshake.choose_headers().await?;
    let (mut exports, mut kept) = (Vec::new(), 0);
    for name in handshake.list().await? {
        *watch = Watch::start(handshake.socket(), TIMEOUT);
        let export = handshake.go(option::INFO, &name).await?;
        let export = export.ok_or_else(|| Error::new(Kind::Unsupported, "the server tells no facts"))?;
        let contexts = match handshake.headers() {
            Headers::Simple => Vec::new(),
            _ => handshake.contexts(&name).await?,
        };
        kept += name.len() + contexts.iter().map(|context| context.len() + CONTEXT).sum::<usize>();
        if kept > MAX_KEPT {
            return Err(broken("the server's list of exports has no end"));
        }
        let export = Export { headers: handshake.headers(), ..export };
        exports.push(Listed { name, export, contexts, oldstyle: false });
    }
    handshake.abort().await;
    Ok(exports)
}
