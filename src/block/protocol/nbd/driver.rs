//! The driver: requests of the pipeline as requests of the protocol, inside the server's constraints.

use super::client::{Client, Settings};
use super::requests::Ask;
use super::target::Target;
use crate::block::aio::Engine;
use crate::block::graph::{BlockStatus, ChildRole, Connection, Driver, Limits, Node};
use crate::block::options::{OpenOptions, Preallocation};
use crate::block::secret::Secrets;
use crate::block::{Error, Iov, Kind, Result, tls};
use crate::util::keyval::Options;
use crate::util::nbd::{Command, MAX_TRANSFER, command, context, export};
use async_trait::async_trait;
use std::rc::Rc;
use std::time::Duration;

/// How long requests wait for a lost server where nothing else is said.
const RECONNECT_DELAY: Duration = Duration::from_secs(300);
/// Longest range of a request without data, in bytes; a multiple of every block size.
const MAX_RANGE: u64 = 1 << 30;

/// An export that is open.
pub struct NbdDriver {
    client: Rc<Client>,
    filename: String,
    read_only: bool,
    fua: bool,
    limits: Limits,
}

impl NbdDriver {
    /// Connects to the server of `target` and enters the export. Of `own`, the options `reconnect-delay`,
    /// `open-timeout` (both in seconds), `x-dirty-bitmap`, `tls-creds` and `tls-hostname` are taken.
    ///
    /// # Errors
    /// In qemu-img's words, with server and export.
    pub async fn open(
        engine: &Rc<Engine>,
        target: &Target,
        options: &OpenOptions,
        own: &mut Options,
    ) -> Result<NbdDriver> {
        let filename = target.to_string();
        let settings = settings(target, options, own)?;
        let client = Client::open(engine, target, settings).await.map_err(|error| error.path(&filename))?;
        let export = client.export();
        let max_transfer = export.blocks.maximum.min(MAX_TRANSFER);
        Ok(NbdDriver {
            filename,
            read_only: options.read_only || export.has(export::READ_ONLY),
            fua: !options.cache.writeback && export.has(export::FUA),
            limits: Limits {
                request_alignment: export.blocks.minimum,
                memory_alignment: 1,
                max_transfer: max_transfer - max_transfer % export.blocks.minimum,
                growable: false,
            },
            client,
        })
    }

    /// Sends a request for a range, in pieces where it is long.
    async fn range(&self, command: Command, flags: u16, offset: u64, len: u64) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let len = (end - at).min(MAX_RANGE);
            let _room = self.client.make_room(0).await?;
            self.client
                .ask(Ask { command, flags: flags | self.fua(), offset: at, len, memory: None })
                .await?;
            at += len;
        }
        Ok(())
    }

    fn fua(&self) -> u16 {
        if self.fua { command::FUA } else { 0 }
    }

    fn need(&self, flag: u16) -> Result<()> {
        match self.client.export().has(flag) {
            true => Ok(()),
            false => Err(Error::new(Kind::Unsupported, "the server cannot do that").path(&self.filename)),
        }
    }
}

impl Drop for NbdDriver {
    fn drop(&mut self) {
        self.client.abort();
    }
}

/// Takes the options of the driver.
fn settings(target: &Target, options: &OpenOptions, own: &mut Options) -> Result<Settings> {
    let mut seconds = |key: &str, default: Duration| match own.take(key) {
        None => Ok(default),
        Some(text) => {
            let count = text.parse::<f64>().ok().filter(|count| *count <= f64::from(u32::MAX));
            let time = count.and_then(|count| Duration::try_from_secs_f64(count).ok());
            let message = || format!("Parameter '{key}' expects a number of seconds");
            time.ok_or_else(|| Error::new(Kind::InvalidArgument, message()))
        }
    };
    let (reconnect_delay, open_timeout) =
        (seconds("reconnect-delay", RECONNECT_DELAY)?, seconds("open-timeout", Duration::ZERO)?);
    Ok(Settings {
        reconnect_delay,
        open_timeout,
        context: own.take("x-dirty-bitmap"),
        read_only: options.read_only,
        write_through: !options.cache.writeback,
        no_flush: options.cache.no_flush,
        tls: take_tls(target, &options.secrets, own)?,
    })
}

/// The credentials for a server, where TLS is wanted. The name that it must prove is that of its host, if no other is
/// named; behind a Unix socket it has none.
fn take_tls(target: &Target, secrets: &Secrets, own: &mut Options) -> Result<Option<tls::Client>> {
    let (id, hostname) = (own.take("tls-creds"), own.take("tls-hostname"));
    let credentials = match id {
        Some(id) => secrets.tls_client(&id)?,
        None if target.tls => secrets.only_tls_client().ok_or_else(|| {
            Error::invalid_argument("nbds:// needs credentials of a client")
                .remedy("define them with --object tls-creds-x509,id=…,dir=…,endpoint=client")
        })?,
        None => return Ok(None),
    };
    Ok(Some(credentials.of(hostname.or_else(|| target.address.host().map(str::to_owned)))))
}

#[async_trait(?Send)]
impl Driver for NbdDriver {
    fn format_name(&self) -> &'static str {
        "nbd"
    }

    fn size(&self) -> u64 {
        self.client.size()
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        let len = into.len() as u64;
        let memory = Some(into.clone());
        self.client.ask(Ask { command: Command::Read, flags: 0, offset, len, memory }).await.map(drop)
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        let _room = self.client.make_room(from.len()).await?;
        let (len, flags, memory) = (from.len() as u64, self.fua(), Some(from.clone()));
        self.client.ask(Ask { command: Command::Write, flags, offset, len, memory }).await.map(drop)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.need(export::WRITE_ZEROES)?;
        let flags = if may_unmap { 0 } else { command::NO_HOLE };
        self.range(Command::WriteZeroes, flags, offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.need(export::TRIM)?;
        self.range(Command::Trim, 0, offset, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.client.flush().await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let mut extent = (len, 0);
        if self.client.export().context.is_some() {
            let align = u64::from(self.limits.request_alignment);
            let start = offset / align * align;
            let len = (offset - start + len).next_multiple_of(align).min(MAX_RANGE);
            let ask = Ask {
                command: Command::BlockStatus,
                flags: command::REQ_ONE,
                offset: start,
                len,
                memory: None,
            };
            if let Some((len, flags)) = self.client.ask(ask).await? {
                extent = (len.saturating_sub(offset - start).max(1), flags);
            }
        }
        Ok(BlockStatus {
            len: extent.0.min(len),
            allocated: true,
            data: extent.1 & context::HOLE == 0,
            zero: extent.1 & context::ZERO != 0,
            compressed: false,
            mapped: None,
            recurse: false,
        })
    }

    async fn truncate(&self, size: u64, _preallocation: Preallocation) -> Result<()> {
        let message = match size.cmp(&self.size()) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => "Cannot grow NBD nodes",
            std::cmp::Ordering::Less => "Cannot resize NBD nodes",
        };
        Err(Error::new(Kind::Unsupported, message).path(&self.filename).remedy("resize it at the server"))
    }

    fn connection(&self) -> Option<Connection> {
        Some(self.client.state())
    }

    async fn close(&self) -> Result<()> {
        self.client.close().await;
        Ok(())
    }
}
