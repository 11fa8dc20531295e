//! Files in memory that all threads see, on a host that fails on demand.

use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{self, Iov};
use async_trait::async_trait;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

/// What is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// One request.
    Error,
    /// It and all that follow on this disk; the process lives on.
    Lasting(usize),
    /// It and all that follow.
    Death,
}

/// Counts down to the request that fails.
#[derive(Default)]
pub(super) struct Fuse {
    pub(super) fault: Option<(u64, Fault)>,
    pub(super) blown: bool,
}

pub(super) type Host = Arc<Mutex<Fuse>>;
pub(super) type File = Arc<Mutex<Vec<u8>>>;

/// A file in memory that all threads see.
struct Shared {
    file: File,
    host: Host,
    /// Which disk it is.
    disk: usize,
}

impl Shared {
    fn pass(&self) -> block::Result<()> {
        let mut fuse = self.host.lock().unwrap();
        let blown = fuse.blown;
        let fails = match &mut fuse.fault {
            None => false,
            Some((_, Fault::Lasting(disk))) if *disk != self.disk => false,
            Some((0, fault)) => *fault != Fault::Error || !blown,
            Some((left, _)) => {
                *left -= 1;
                false
            }
        };
        fuse.blown |= fails;
        match fails {
            true => Err(block::Error::from_io(std::io::Error::from_raw_os_error(libc::ENOSPC))),
            false => Ok(()),
        }
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.file.lock().unwrap();
        let end = offset as usize + data.len();
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[offset as usize..end].copy_from_slice(data);
    }
}

#[async_trait(?Send)]
impl Driver for Shared {
    fn format_name(&self) -> &'static str {
        "memory"
    }
    fn size(&self) -> u64 {
        self.file.lock().unwrap().len() as u64
    }
    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }
    fn limits(&self) -> Limits {
        Limits { growable: true, ..Limits::ANY }
    }
    fn read_only(&self) -> bool {
        false
    }
    async fn read(&self, offset: u64, into: &Iov) -> block::Result<()> {
        into.copy_from(0, &self.file.lock().unwrap()[offset as usize..][..into.len()]);
        Ok(())
    }
    async fn write(&self, offset: u64, from: &Iov) -> block::Result<()> {
        self.pass()?;
        self.put(offset, &from.to_vec());
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> block::Result<()> {
        self.pass()?;
        self.put(offset, &vec![0; len as usize]);
        Ok(())
    }
    async fn discard(&self, offset: u64, len: u64) -> block::Result<()> {
        self.pass()?;
        let len = len.min(self.size().saturating_sub(offset));
        self.put(offset, &vec![0xdd; len as usize]);
        Ok(())
    }
    async fn flush(&self) -> block::Result<()> {
        self.pass()
    }
    async fn block_status(&self, _offset: u64, len: u64) -> block::Result<BlockStatus> {
        let mapped = None;
        Ok(BlockStatus {
            len,
            allocated: true,
            data: true,
            zero: false,
            compressed: false,
            mapped,
            recurse: false,
        })
    }
    async fn truncate(&self, size: u64, _preallocation: Preallocation) -> block::Result<()> {
        self.pass()?;
        self.file.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }
}

/// A disk's file, and how it fails.
pub(super) fn node(file: &File, host: &Host, disk: usize) -> Rc<Node> {
    Node::new("memory", Box::new(Shared { file: file.clone(), host: host.clone(), disk }))
}
