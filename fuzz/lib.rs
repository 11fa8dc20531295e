//! What the targets do. With the bytes of an image: ask everything of it, then write to it. With a FAT disk: write to
//! it, and look at what became of the host. Those of a conversation are in [`nbd`].

pub mod nbd;

use cowvm::block::Buffer;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::{OpenOptions, Preallocation};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
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

/// What is beside the directory that the FAT disk shows.
const OUTSIDE: &[u8] = b"outside";
/// Sectors of a floppy in which its FATs, its root directory and its first files are.
const SECTORS: u64 = 80;

/// Shows a small directory as a writable floppy, changes what `patches` say, and looks around.
pub fn write_fat(patches: &[u8]) {
    let scratch = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let shown = scratch.path().join("shown");
    fill(&shown);
    fs::write(scratch.path().join("outside"), OUTSIDE).expect("room for it");
    let engine = Engine::new(Backend::Threads).expect("an engine");
    let options = OpenOptions { read_only: false, ..OpenOptions::default() };
    let name = format!("fat:floppy:rw:{}", shown.display());
    let run = async {
        let node = open(&engine, &name, &options).await.expect("a disk");
        for patch in patches.chunks_exact(5) {
            write_patch(&node, patch).await;
        }
        let _ = node.flush().await;
        let _ = node.close().await;
    };
    engine.block_on(run).expect("the engine runs");
    assert_eq!(fs::read(scratch.path().join("outside")).expect("what is outside"), OUTSIDE);
    assert_eq!(fs::read_dir(scratch.path()).expect("the folder").count(), 2, "something is outside");
}

fn fill(shown: &Path) {
    for directory in ["", "sub", "sub/deep"] {
        fs::create_dir_all(shown.join(directory)).expect("a folder");
        for number in 0..3u8 {
            let name = shown.join(directory).join(format!("file {number}.bin"));
            fs::write(name, vec![number; 700 * usize::from(number)]).expect("a file");
        }
    }
}

async fn write_patch(node: &Rc<Node>, patch: &[u8]) {
    let at = u64::from(u16::from_le_bytes([patch[1], patch[2]])) % (SECTORS * 512 - 32);
    match patch[0] % 5 {
        0 => drop(node.write_bytes(at, &patch[3..4]).await),
        1 => drop(node.write_bytes(at & !1, &patch[3..5]).await),
        2 => {
            // Another entry's slot.
            let from = u64::from(u16::from_le_bytes([patch[3], patch[4]])) % (SECTORS * 16) * 32;
            let slot = node.read_bytes(from, 32).await.unwrap_or_else(|_| vec![0; 32]);
            let _ = node.write_bytes(at & !31, &slot).await;
        }
        3 => drop(node.write_bytes(at & !31, b"..         ").await),
        _ => drop(node.flush().await),
    }
}
