//! Disks from and to pipes, which are read or written once from start to end.

use super::copy::{CopyOptions, Reports, copy, data_clusters, find_runs, piece_len, total_size};
use super::create::{Values, stream_options};
use super::{SECTOR, cluster_size, write_clusters};
use crate::block::aio::Engine;
use crate::block::format::qcow2::write_metadata;
use crate::block::graph::Node;
use crate::block::options::Preallocation;
use crate::block::protocol::stream::StreamOut;
use crate::block::{Buffer, Error, Result};
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;

/// What a table of clusters is made larger by at least, in bytes of the disk, while nobody knows how much is to come.
const GROWTH: u64 = 1 << 30;

/// Writes the disks of `sources` to `out`, as an image of the kind that `values` describe; their map is read before, so
/// that no byte of the stream needs to be kept.
///
/// # Errors
/// What cannot be read or written; [`Kind::Unsupported`](crate::block::Kind::Unsupported) for kinds of images that cannot
/// be written so.
pub async fn write_stream(
    engine: &Rc<Engine>,
    sources: &[Rc<Node>],
    values: &Values,
    out: File,
    options: &CopyOptions,
) -> Result<u64> {
    let (size, out) = (total_size(sources), Arc::new(out));
    let map = match stream_options(values)? {
        None => None,
        Some(image) => {
            let map = Arc::new(data_clusters(sources, options, image.cluster_size).await?);
            let (file, known) = (out.clone(), map.clone());
            engine.offload(move || write_metadata(&image, &known, &*file)).await?;
            Some(map)
        }
    };
    let target = Node::new("-", Box::new(StreamOut::new(engine, out, size, map)));
    let reports = Reports { progress: None, warn: &|_, _, _| {} };
    copy(engine, sources, &target, options, &reports).await?;
    target.close().await?;
    Ok(size)
}

/// Copies what comes from `input` to `target`, which is new and grows with it, until the end. `accept` sees the first bytes,
/// before anything is written. Returns the disk's size.
///
/// # Errors
/// What cannot be read or written.
pub async fn read_stream(
    engine: &Rc<Engine>,
    input: File,
    target: &Rc<Node>,
    options: &CopyOptions,
    accept: impl Fn(&[u8]) -> Result<()>,
) -> Result<u64> {
    let block = piece_len(options, cluster_size(target)) as usize;
    let input = Arc::new(input);
    let mut at = 0;
    let mut next = read_block(engine, &input, block).await?;
    accept(&next)?;
    loop {
        let bytes = next;
        if bytes.len() < block {
            let size = (at + bytes.len() as u64).next_multiple_of(SECTOR);
            target.truncate(size, Preallocation::Off).await?;
            write_block(target, at, &bytes, options).await?;
            return Ok(size);
        }
        let end = at + block as u64;
        if target.size() < end {
            grow(target, end).await?;
        }
        let write = write_block(target, at, &bytes, options);
        let (written, read) = futures_util::future::join(write, read_block(engine, &input, block)).await;
        written?;
        (next, at) = (read?, end);
    }
}

/// Makes the target at least `end` bytes long: tables of clusters grow by much at a time, if there is room; a file that is
/// as long as the disk does not grow ahead of it.
async fn grow(target: &Node, end: u64) -> Result<()> {
    if target.driver().clusters().is_some() {
        let ahead = end + (end / 2).max(GROWTH);
        if target.truncate(ahead, Preallocation::Off).await.is_ok() {
            return Ok(());
        }
    }
    target.truncate(end, Preallocation::Off).await
}

/// The next bytes of a stream; fewer only at its end.
async fn read_block(engine: &Rc<Engine>, input: &Arc<File>, len: usize) -> Result<Vec<u8>> {
    let input = input.clone();
    let read = engine.offload(move || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        (&*input).take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    read.await.map_err(|error| Error::from_io(error).context("error while reading standard input"))
}

async fn write_block(target: &Rc<Node>, at: u64, bytes: &[u8], options: &CopyOptions) -> Result<()> {
    // The last sector is a whole one.
    let len = bytes.len().next_multiple_of(SECTOR as usize);
    let (buffer, cluster) = (Buffer::new(len).iov(len), cluster_size(target));
    buffer.copy_from(0, bytes);
    buffer.fill(bytes.len(), len - bytes.len(), 0);
    for (run, data) in find_runs(bytes, at, options.shortest_zeros(cluster)) {
        let (start, end) = (at + run.start, run.end.next_multiple_of(SECTOR));
        let from = buffer.slice(run.start as usize, (end - run.start) as usize);
        let done = match data {
            true if options.compress => write_clusters(target, cluster, start, &from).await,
            true => target.write(start, &from).await,
            false if options.target_is_zero => Ok(()),
            false => target.write_zeroes(start, end - run.start, true).await,
        };
        done.map_err(|error| error.context(format!("error while writing at byte {start}")))?;
    }
    Ok(())
}
