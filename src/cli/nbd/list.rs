//! `-L`: the exports of another server, as qemu-nbd lists them.

use super::{Failure, print};
use crate::block::aio::{Backend, Engine};
use crate::block::protocol::nbd::{Address, Listed, list};
use crate::block::tls;
use crate::util::nbd::export;
use crate::util::nbd::transmission::Headers;

pub(super) fn run(address: &Address, tls: Option<&tls::Client>) -> Result<(), Failure> {
    let engine = Engine::new(Backend::from_environment())?;
    let exports = engine.block_on(list(&engine, address, tls))?.map_err(|error| Failure::plain(&error))?;
    let mut text = format!("exports available: {}\n", exports.len());
    text.extend(exports.iter().map(of_export));
    print(&text)
}

fn of_export(listed: &Listed) -> String {
    let export = &listed.export;
    let mut text = format!(" export: '{}'\n", listed.name);
    if let Some(description) = &export.description {
        text += &format!("  description: {description}\n");
    }
    text += &format!("  size:  {}\n", export.size);
    if export.flags & export::HAS_FLAGS != 0 {
        let names = export::NAMES.iter().filter(|(flag, _)| export.flags & flag != 0);
        let names: String = names.map(|(_, name)| format!(" {name}")).collect();
        text += &format!("  flags: 0x{:x} ({names} )\n", export.flags);
    }
    if let Some(blocks) = export.said_blocks {
        text += &format!("  min block: {}\n", blocks.minimum);
        text += &format!("  opt block: {}\n", blocks.preferred);
        text += &format!("  max block: {}\n", blocks.maximum);
    }
    match export.headers {
        _ if listed.oldstyle => {}
        Headers::Simple | Headers::Structured => text += "  transaction size: 32-bit\n",
        Headers::Extended => text += "  transaction size: 64-bit\n",
    }
    if !listed.contexts.is_empty() {
        text += &format!("  available meta contexts: {}\n", listed.contexts.len());
        text.extend(listed.contexts.iter().map(|name| format!("   {name}\n")));
    }
    text
}
