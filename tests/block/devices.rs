//! Block devices below the drivers, with loop devices in the place of disks.

use crate::fixture::{BACKENDS, Folder, Image};
use crate::loop_device::LoopDevice;
use cowvm::block::options::{CacheMode, OpenOptions, Preallocation};
use cowvm::block::{Buffer, Kind};
use std::fs::File;
use std::path::Path;

const SIZE: u64 = 4 << 20;

fn options(word: &str) -> OpenOptions {
    OpenOptions {
        format: Some("raw".into()),
        read_only: false,
        cache: CacheMode::parse(word).unwrap(),
        unmap: true,
        ..OpenOptions::default()
    }
}

/// A device of `size` bytes of zeros.
fn device(folder: &Folder, size: u64, options: &[&str]) -> Option<LoopDevice> {
    File::create(folder.path("disk")).unwrap().set_len(size).unwrap();
    LoopDevice::of(&folder.path("disk"), options)
}

#[test]
fn writes_zeros_and_discards_reach_the_device() {
    for (backend, cache) in BACKENDS.into_iter().zip(["writeback", "none"]) {
        let folder = Folder::new();
        let Some(device) = device(&folder, SIZE, &[]) else { return };
        let image = Image::open_with(backend, Path::new(device.path()), &options(cache));
        assert_eq!((image.node.size(), image.node.driver().format_name()), (SIZE, "raw"));
        image.write(0, &vec![7; SIZE as usize]);
        let (engine, node) = (&image.engine, &image.node);
        engine.block_on(node.write_zeroes(1 << 20, 65536, false)).unwrap().unwrap();
        engine.block_on(node.write_zeroes((2 << 20) + 100, 70000, true)).unwrap().unwrap();
        engine.block_on(node.flush()).unwrap().unwrap();
        let full = folder.space("disk");
        engine.block_on(node.discard(3 << 20, 1 << 20)).unwrap().unwrap();
        assert!(folder.space("disk") <= full - (1 << 19), "{full} {}", folder.space("disk"));
        let mut expected = vec![7; 3 << 20];
        expected[1 << 20..][..65536].fill(0);
        expected[(2 << 20) + 100..][..70000].fill(0);
        assert!(image.read(0, 3 << 20) == expected, "{cache}");
    }
}

#[test]
fn direct_io_keeps_to_the_device_s_blocks() {
    let folder = Folder::new();
    let Some(device) = device(&folder, SIZE, &["--sector-size", "4096"]) else { return };
    for backend in BACKENDS {
        let image = Image::open_with(backend, Path::new(device.path()), &options("none"));
        let facts = image.node.driver().device().unwrap();
        assert_eq!((facts.logical_block_size, facts.physical_block_size), (4096, 4096));
        image.write(512, &[1; 512]);
        image.write(4095, &[2; 4098]);
        let mut expected = vec![0; 12288];
        expected[512..1024].fill(1);
        expected[4095..8193].fill(2);
        assert!(image.read(0, 12288) == expected);
        image.write(0, &[0; 12288]);
    }
}

#[test]
fn a_device_has_its_size_and_takes_up_a_new_one() {
    let folder = Folder::new();
    let Some(device) = device(&folder, SIZE, &[]) else { return };
    let image = Image::open_with(BACKENDS[0], Path::new(device.path()), &options("writeback"));
    let resize = |size| image.engine.block_on(image.node.truncate(size, Preallocation::Off)).unwrap();
    for size in [SIZE / 2, SIZE * 2] {
        assert_eq!(resize(size).unwrap_err().message(), "Cannot resize device files");
    }
    File::options().write(true).open(folder.path("disk")).unwrap().set_len(SIZE * 2).unwrap();
    let set = std::process::Command::new("losetup").args(["--set-capacity", device.path()]).status().unwrap();
    assert!(set.success());
    resize(SIZE * 2).unwrap();
    image.write(SIZE * 2 - 1, &[9]);
    assert_eq!(image.read(SIZE * 2 - 1, 1), [9]);
}

#[test]
fn a_full_device_is_no_space() {
    let folder = Folder::new();
    let Some(device) = device(&folder, 1 << 20, &[]) else { return };
    folder.qemu_img(&format!("create -q -f qcow2 {} 8M", device.path()));
    for backend in BACKENDS {
        let qcow2 = OpenOptions { format: Some("qcow2".into()), ..options("writeback") };
        let image = Image::open_with(backend, Path::new(device.path()), &qcow2);
        let iov = Buffer::from_bytes(&vec![3; 2 << 20]).iov(2 << 20);
        let error = image.engine.block_on(image.node.write(0, &iov)).unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        image.engine.block_on(image.node.close()).unwrap().unwrap();
    }
    folder.qemu_img(&format!("check -f qcow2 {}", device.path()));
}

#[test]
fn one_writer_has_a_device_for_itself_under_any_of_its_names() {
    let folder = Folder::new();
    let Some(device) = device(&folder, SIZE, &[]) else { return };
    let other = folder.path("other-name");
    std::os::unix::fs::symlink(device.path(), &other).unwrap();
    let image = Image::open_with(BACKENDS[0], Path::new(device.path()), &options("writeback"));
    let error = Image::try_open(BACKENDS[0], &other, &options("writeback")).err().unwrap();
    assert_eq!(error.kind(), Kind::Locked, "{error}");
    drop(image);
    drop(Image::open_with(BACKENDS[0], &other, &options("writeback")));
}

#[test]
fn an_image_s_word_opens_no_device_and_a_user_s_does() {
    let folder = Folder::new();
    let Some(device) = device(&folder, SIZE, &[]) else { return };
    for name in [device.path().to_owned(), format!("host_device:{}", device.path())] {
        folder.qemu_img(&format!("create -q -f qcow2 -u -b {name} -F raw top.qcow2 4M"));
        let error = Image::try_open(BACKENDS[0], &folder.path("top.qcow2"), &OpenOptions::default());
        assert!(error.is_err(), "{name}");
    }
    let mut named = OpenOptions::default();
    named.driver.set("backing.file.filename", device.path());
    let image = Image::open_with(BACKENDS[0], &folder.path("top.qcow2"), &named);
    assert_eq!(image.read(0, 512), [0; 512]);
}
