//! What a server has: its exports, each with its facts.

use super::client::Watch;
use super::connect::connect;
use super::negotiate::{Export, Greeted, Handshake};
use super::target::Address;
use crate::block::aio::Engine;
use crate::block::{Error, Kind, Result};
use crate::util::nbd::option;
use crate::util::nbd::transmission::Headers;
use std::rc::Rc;
use std::time::Duration;

/// How long a server may take for the next answer.
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

/// Asks a server for its exports.
///
/// # Errors
/// In qemu-nbd's words.
pub async fn list(engine: &Rc<Engine>, address: &Address) -> Result<Vec<Listed>> {
    let socket = Rc::new(connect(engine, address).await?);
    let watch = Watch::start(&socket, TIMEOUT);
    let listed = match Handshake::begin(&socket).await {
        Ok(Greeted::Oldstyle(_, export)) => {
            Ok(vec![Listed { name: String::new(), export, contexts: Vec::new(), oldstyle: true }])
        }
        Ok(Greeted::Newstyle(handshake)) => ask(handshake).await,
        Err(error) => Err(error),
    };
    watch.judge(listed)
}

async fn ask(mut handshake: Handshake) -> Result<Vec<Listed>> {
    handshake.choose_headers().await?;
    let mut exports = Vec::new();
    for name in handshake.list().await? {
        let export = handshake.go(option::INFO, &name).await?;
        let export = export.ok_or_else(|| Error::new(Kind::Unsupported, "the server tells no facts"))?;
        let contexts = match handshake.headers() {
            Headers::Simple => Vec::new(),
            _ => handshake.contexts(&name).await?,
        };
        let export = Export { headers: handshake.headers(), ..export };
        exports.push(Listed { name, export, contexts, oldstyle: false });
    }
    handshake.abort().await;
    Ok(exports)
}
