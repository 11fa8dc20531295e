//! Standard output and its like: a disk that is written once, from start to end.
//!
//! What is not written is zeros, or nothing at all where a map says that the cluster has no data. Requests come in order,
//! one at a time; a place behind the last one cannot be gone back to.

use crate::block::aio::Engine;
use crate::block::cluster_map::ClusterMap;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

/// A disk that goes to a stream.
pub struct StreamOut {
    engine: Rc<Engine>,
    file: Arc<File>,
    size: u64,
    /// Clusters that have a place in the stream; all of them where there is no map.
    map: Option<Arc<ClusterMap>>,
    at: Cell<u64>,
}

impl StreamOut {
    /// A disk of `size` bytes.
    pub fn new(engine: &Rc<Engine>, file: Arc<File>, size: u64, map: Option<Arc<ClusterMap>>) -> StreamOut {
        StreamOut { engine: engine.clone(), file, size, map, at: Cell::new(0) }
    }

    /// Writes zeros up to `end`, as far as they have a place.
    async fn fill_up_to(&self, end: u64) -> Result<()> {
        let start = self.at.replace(end.max(self.at.get()));
        let zeros = match &self.map {
            None => end.saturating_sub(start),
            Some(map) => (start / map.cluster_size()..end.div_ceil(map.cluster_size()))
                .filter(|cluster| map.contains(*cluster))
                .map(|cluster| {
                    let first = cluster * map.cluster_size();
                    end.min(first + map.cluster_size()) - start.max(first)
                })
                .sum(),
        };
        if zeros == 0 {
            return Ok(());
        }
        let file = self.file.clone();
        let written = self.engine.offload(move || {
            let mut zeros = io::Read::take(io::repeat(0), zeros);
            io::copy(&mut zeros, &mut io::BufWriter::with_capacity(256 << 10, &*file))
        });
        written.await.map(drop).map_err(Error::from_io)
    }

    fn check(&self, at: u64, len: u64) -> Result<()> {
        let in_map = |map: &ClusterMap| {
            let size = map.cluster_size();
            (at / size..(at + len).div_ceil(size)).all(|cluster| map.contains(cluster))
        };
        if at < self.at.get() || !self.map.as_ref().is_none_or(|map| in_map(map)) {
            return Err(Error::new(Kind::Io, "a stream has no place for these bytes any more")
                .remedy("see that nobody changes the source meanwhile"));
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Driver for StreamOut {
    fn format_name(&self) -> &'static str {
        "stream"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }

    fn limits(&self) -> Limits {
        Limits::ANY
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, _offset: u64, _into: &Iov) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a stream that is written cannot be read"))
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check(offset, from.len() as u64)?;
        self.fill_up_to(offset).await?;
        let (file, bytes) = (self.file.clone(), from.to_vec());
        self.at.set(offset + bytes.len() as u64);
        self.engine.offload(move || (&*file).write_all(&bytes)).await.map_err(Error::from_io)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<()> {
        self.fill_up_to(offset + len).await
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, _offset: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::of_data(len))
    }

    async fn close(&self) -> Result<()> {
        // The last cluster is a whole one.
        let end = self.map.as_ref().map_or(self.size, |map| map.clusters() * map.cluster_size());
        self.fill_up_to(end).await
    }
}
