//! What the targets `image` and `patches` do with the bytes of an image: ask everything of it, then write to it. Those
//! of a conversation are in [`nbd`].

pub mod nbd;

use cowvm::block::Buffer;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::{OpenOptions, Preallocation};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::rc::Rc;

/// Opens `bytes` as a qcow2 image in a file without a name, to read and then to write.
pub fn exercise(bytes: &[u8]) {
    for read_only in [true, false] {
        let file = image_file(bytes);
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let options = OpenOptions {
            format: Some("qcow2".into()),
            read_only,
            force_share: true,
            backing: false,
            ..OpenOptions::default()
        };
        let engine = Engine::new(Backend::Threads).expect("an engine");
        let run = async {
            let Ok(node) = open(&engine, &name, &options).await else { return };
            if read_only {
                ask(&node).await
            } else {
                change(&node).await
            }
            let _ = node.close().await;
        };
        engine.block_on(run).expect("the engine runs");
    }
}

/// A file in memory.
fn image_file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    file.write_all(bytes).expect("room for it");
    file
}

async fn ask(node: &Rc<Node>) {
    let size = node.size();
    for at in [0, size / 2, size.saturating_sub(4096)] {
        let _ = node.read_bytes(at, 4096).await;
    }
    let _ = node.block_status(0, size).await;
    let _ = node.driver().specifics();
    if let Some(checker) = node.driver().checker() {
        let _ = checker.check().await;
    }
}

async fn change(node: &Rc<Node>) {
    let size = node.size();
    let data = Buffer::from_bytes(&[0x77; 5000]).iov(5000);
    for at in [100, size / 2, size.saturating_sub(5000)] {
        let _ = node.write(at, &data).await;
    }
    let _ = node.write_zeroes(0, size.min(64 << 10), true).await;
    let _ = node.discard(0, size.min(64 << 10)).await;
    let _ = node.flush().await;
    let _ = node.truncate(size.saturating_add(1 << 20), Preallocation::Off).await;
}
