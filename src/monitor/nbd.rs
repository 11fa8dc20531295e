//! Disks of the running guest as exports of an NBD server (docs/nbd.md, "In the monitor").

use super::hmp::Call;
use super::hmp::table::{Command, Run};
use super::qmp::{self, Argument, Arguments, Kind, Reply};
use super::{Control, Error, Pending, Result};
use crate::block::drive::Drive;
use crate::block::graph::bitmaps::bitmap_holder;
use crate::block::protocol::nbd::Address;
use crate::nbd_server::{Background, Export, Offer, Settings, listen};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a handshake may take where nothing else is said.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Most clients of an export where nothing else is said.
const MAX_CONNECTIONS: usize = 100;
/// Longest name and description, in bytes.
const MAX_TEXT: usize = crate::util::nbd::MAX_STRING;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "nbd_server_start",
        arguments: "[-a] [-w] host:port",
        words: 1..=1,
        flags: "aw",
        help: "serve disks to NBD clients at an address, or at unix:PATH (-a: all disks, -w: to be written too)",
        run: Run::Tell(start_by_words),
    },
    Command {
        name: "nbd_server_add",
        arguments: "[-w] device [name]",
        words: 1..=2,
        flags: "w",
        help: "export a disk (-w: to be written too)",
        run: Run::Tell(|control, call, _| {
            let device = call.word(0);
            let name = if call.words.len() > 1 { call.word(1) } else { device };
            add(control, device, Offer { read_only: !call.has('w'), ..offer(name) })
        }),
    },
    Command {
        name: "nbd_server_remove",
        arguments: "[-f] name",
        words: 1..=1,
        flags: "f",
        help: "take an export away (-f: also where it has clients)",
        run: Run::Tell(|control, call, _| remove(control, call.word(0), call.has('f'))),
    },
    Command {
        name: "nbd_server_stop",
        arguments: "",
        words: 0..=0,
        flags: "",
        help: "take all exports away and serve no more",
        run: Run::Begin(|control, _| stop(control)),
    },
];

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command {
        name: "nbd-server-start",
        arguments: &[
            Argument::required("addr", Kind::Object),
            Argument::optional("handshake-max-seconds", Kind::Number),
            Argument::optional("tls-creds", Kind::Text),
            Argument::optional("max-connections", Kind::Number),
        ],
        run: |control, arguments| start_by_arguments(control, arguments).map(|()| Reply::nothing()),
    },
    qmp::Command {
        name: "nbd-server-add",
        arguments: &[
            Argument::required("device", Kind::Text),
            Argument::optional("name", Kind::Text),
            Argument::optional("description", Kind::Text),
            Argument::optional("writable", Kind::Switch),
            Argument::optional("bitmap", Kind::Text),
        ],
        run: |control, arguments| {
            let device = arguments.text("device").unwrap_or_default();
            let offer = Offer {
                description: arguments.text("description").map(str::to_owned),
                read_only: !arguments.switch("writable").unwrap_or(false),
                bitmaps: arguments.text("bitmap").map(str::to_owned).into_iter().collect(),
                ..offer(arguments.text("name").unwrap_or(device))
            };
            add(control, device, offer).map(|()| Reply::nothing())
        },
    },
    qmp::Command {
        name: "nbd-server-remove",
        arguments: &[Argument::required("name", Kind::Text), Argument::optional("mode", Kind::Text)],
        run: |control, arguments| {
            let hard = match arguments.text("mode") {
                None | Some("safe") => false,
                Some("hard") => true,
                Some(other) => {
                    return Err(Error::new(format!("Parameter 'mode' does not accept value '{other}'")));
                }
            };
            remove(control, arguments.text("name").unwrap_or_default(), hard).map(|()| Reply::nothing())
        },
    },
    qmp::Command::plain("nbd-server-stop", |control, _| Ok(Reply::Pending(stop(control)?))),
];

/// The server of a machine, if it has one.
pub(super) struct Exports {
    server: Background,
    max_connections: usize,
    /// By name.
    exports: BTreeMap<String, Arc<Export>>,
}

fn offer(name: &str) -> Offer {
    Offer { name: name.to_owned(), ..Offer::default() }
}

fn not_running() -> Error {
    Error::new("NBD server not running")
}

fn start_by_words(control: &mut Control, call: &Call, _: &mut String) -> Result<()> {
    let address = Address::parse(call.word(0))?;
    let settings = Settings { handshake_limit: Some(HANDSHAKE_LIMIT), persistent: true, tls: None };
    start(control, &address, settings, MAX_CONNECTIONS)?;
    if !call.has('a') {
        return Ok(());
    }
    let names: Vec<String> = control.machine.disks().iter().map(|disk| disk.drive.id().to_owned()).collect();
    let added = names
        .iter()
        .try_for_each(|name| add(control, name, Offer { read_only: !call.has('w'), ..offer(name) }));
    if added.is_err() {
        control.nbd = None;
    }
    added
}

fn start_by_arguments(control: &mut Control, arguments: &Arguments) -> Result<()> {
    let address = address(arguments)?;
    let count = |name| arguments.number(name).map(|count| u64::try_from(count).unwrap_or(0));
    let seconds = count("handshake-max-seconds").unwrap_or(HANDSHAKE_LIMIT.as_secs());
    let connections = count("max-connections").map_or(MAX_CONNECTIONS, |count| count as usize);
    let tls = arguments.text("tls-creds").map(|id| control.secrets.tls_server(id)).transpose()?;
    let limit = (seconds > 0).then(|| Duration::from_secs(seconds));
    let settings = Settings { handshake_limit: limit, persistent: true, tls };
    start(control, &address, settings, connections)
}

/// QMP's `SocketAddressLegacy`.
fn address(arguments: &Arguments) -> Result<Address> {
    let missing = |name: &str| Error::new(format!("Parameter 'addr.{name}' is missing"));
    let given = arguments.object("addr").ok_or_else(|| missing("type"))?;
    let data = given.object("data").ok_or_else(|| missing("data"))?;
    let text =
        |name: &str| data.text(name).map(str::to_owned).ok_or_else(|| missing(&format!("data.{name}")));
    match given.text("type").ok_or_else(|| missing("type"))? {
        "unix" => Ok(Address::Unix(text("path")?)),
        "inet" => Ok(Address::Tcp(text("host")?, text("port")?)),
        other => Err(Error::new(format!("Parameter 'type' does not accept value '{other}'"))),
    }
}

fn start(control: &mut Control, address: &Address, settings: Settings, most: usize) -> Result<()> {
    if control.nbd.is_some() {
        return Err(Error::new("NBD server already running"));
    }
    let server = Background::start(listen(address)?, settings)?;
    control.nbd = Some(Exports { server, max_connections: most, exports: BTreeMap::new() });
    Ok(())
}

/// Exports a disk. Guest and clients share one drive.
fn add(control: &mut Control, device: &str, offer: Offer) -> Result<()> {
    let nbd = control.nbd.as_mut().ok_or_else(not_running)?;
    let name = offer.name.clone();
    let found = control.machine.disks().iter().find(|disk| disk.drive.id() == device);
    let unknown = || Error::new(format!("Cannot find device='{device}' nor node-name='{device}'"));
    let drive = &found.ok_or_else(unknown)?.drive;
    if nbd.exports.contains_key(&name) {
        return Err(Error::new(format!("Block export id '{name}' is already in use")));
    }
    if name.len().max(offer.description.as_ref().map_or(0, String::len)) > MAX_TEXT {
        return Err(Error::new("export name or description is too long"));
    }
    offer.bitmaps.iter().try_for_each(|bitmap| check_bitmap(drive, bitmap))?;
    let export = Export::new(drive, Offer { shared: nbd.max_connections, ..offer });
    let offered = export.clone();
    nbd.server.call(move |server| server.add(offered))?;
    nbd.exports.insert(name, export);
    Ok(())
}

fn check_bitmap(drive: &Drive, name: &str) -> Result<()> {
    let wanted = name.to_owned();
    let found = Control::ask(drive, |local| async move { bitmap_holder(&local.root(), &wanted).is_some() })?;
    match found {
        true => Ok(()),
        false => Err(Error::new(format!("Bitmap '{name}' is not found"))),
    }
}

fn remove(control: &mut Control, name: &str, hard: bool) -> Result<()> {
    let unknown = || Error::new(format!("Export '{name}' is not found"));
    let nbd = control.nbd.as_mut().ok_or_else(unknown)?;
    let export = nbd.exports.get(name).ok_or_else(unknown)?.clone();
    if !hard && export.is_in_use() {
        return Err(Error::new(format!("export '{name}' still in use")));
    }
    nbd.server.call(move |server| server.remove(&export))?;
    nbd.exports.remove(name);
    control.emit("BLOCK_EXPORT_DELETED", Some(json!({"id": name})));
    Ok(())
}

/// Ends the server; done when nothing of what its clients asked for goes on.
fn stop(control: &mut Control) -> Result<Pending> {
    let nbd = control.nbd.take().ok_or_else(not_running)?;
    for name in nbd.exports.keys() {
        control.emit("BLOCK_EXPORT_DELETED", Some(json!({"id": name})));
    }
    let (pending, done) = control.pend();
    nbd.server.stop(done);
    Ok(pending)
}
