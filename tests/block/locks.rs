//! cowvm and QEMU keep each other out.

use crate::fixture::{BACKENDS, Folder, Image};
use crate::holder::Holder;
use cowvm::block::Kind;
use cowvm::block::options::OpenOptions;
use std::process::Command;

fn options(format: &str, read_only: bool) -> OpenOptions {
    OpenOptions { format: Some(format.into()), read_only, ..OpenOptions::default() }
}

#[test]
fn an_image_that_qemu_writes_is_refused_unless_forced() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 a.qcow2 1M");
    let _holder = Holder::new(&["-f", "qcow2"], &folder.path("a.qcow2"));
    for read_only in [true, false] {
        let error = Image::try_open(BACKENDS[0], &folder.path("a.qcow2"), &options("qcow2", read_only)).err();
        let error = error.expect("opened although locked");
        assert_eq!(error.kind(), Kind::Locked);
        assert!(error.message().contains("Is another process using the image"), "{error}");
    }
    let forced = OpenOptions { force_share: true, ..options("qcow2", true) };
    Image::try_open(BACKENDS[0], &folder.path("a.qcow2"), &forced).unwrap();
}

#[test]
fn readers_share_with_readers_and_exclude_writers() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 a.qcow2 1M");
    let _holder = Holder::new(&["-r", "-f", "qcow2"], &folder.path("a.qcow2"));
    Image::try_open(BACKENDS[0], &folder.path("a.qcow2"), &options("qcow2", true)).unwrap();
    let error = Image::try_open(BACKENDS[0], &folder.path("a.qcow2"), &options("qcow2", false)).err();
    assert_eq!(error.unwrap().kind(), Kind::Locked);
}

#[test]
fn qemu_is_refused_while_we_write() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 a.qcow2 1M");
    folder.qemu_img("create -q -f raw a.raw 1M");
    for format in ["qcow2", "raw"] {
        let name = format!("a.{format}");
        let image = Image::open(BACKENDS[0], &folder.path(&name), format, false);
        let refused = Command::new("qemu-io")
            .args(["-f", format, "-c", "write 0 512"])
            .arg(folder.path(&name))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && text.contains("Failed to get \"write\" lock"),
            "{format}: {text}"
        );
        image.close();
        folder.qemu_io(format, &name, &["write 0 512"]);
    }
}
