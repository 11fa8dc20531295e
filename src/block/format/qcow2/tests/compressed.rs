//! Compressed clusters: the real qemu-img's are read, it accepts ours, and streams that lie end in errors.

use super::memory::{Disk, Folder};
use super::model::{Model, base, compressible, finish, seed};
use crate::block::aio::Backend;
use crate::block::format::qcow2::{Codec, CreateOptions};
use crate::block::graph::Node;
use crate::block::graph::driver::CheckReport;
use crate::block::{Buffer, Kind, Result};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::rc::Rc;

/// Text: words out of a list, which zlib makes about a third of.
fn text(len: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(len as u64);
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| (0..rng.random_range(2..10)).map(|_| rng.random_range(b'a'..=b'z')).collect())
        .collect();
    let mut out = Vec::new();
    while out.len() < len {
        out.extend(&words[rng.random_range(0..words.len())]);
        out.push(b' ');
    }
    out.truncate(len);
    out
}

/// Text, noise, zeros, and an end inside of a cluster.
fn mixture(len: usize) -> Vec<u8> {
    let mut bytes = text(len);
    bytes[len / 4..len / 3].copy_from_slice(&base(len)[..len / 3 - len / 4]);
    bytes[len / 2..len / 2 + len / 8].fill(0);
    bytes
}

fn options(cluster_size: u64, codec: Codec, size: usize) -> CreateOptions {
    CreateOptions { size: size as u64, cluster_size, compression_type: codec, ..CreateOptions::default() }
}

async fn write_compressed(node: &Rc<Node>, at: usize, bytes: &[u8]) -> Result<()> {
    node.write_compressed(at as u64, &Buffer::from_bytes(bytes).iov(bytes.len())).await
}

/// A disk that holds `bytes`, written compressed by requests of `request` bytes, all at once.
fn written(options: &CreateOptions, backing: Option<Vec<u8>>, bytes: &[u8], request: usize) -> Disk {
    let disk = Disk::create(Backend::Auto, options, backing);
    let parts = bytes.chunks(request).enumerate();
    let all = parts.map(|(index, part)| write_compressed(&disk.node, index * request, part));
    disk.run(join_all(all)).into_iter().for_each(|done| done.unwrap());
    disk
}

fn report(disk: &Disk) -> CheckReport {
    disk.run(disk.node.driver().checker().unwrap().check()).unwrap()
}

#[test]
fn qemu_imgs_compressed_images_of_every_cluster_size_read_equal() {
    for codec in ["zlib", "zstd"] {
        for bits in 9..=21 {
            let (folder, bytes) = (Folder::new(), mixture((1 << 20) + (5 << bits) + 1536));
            folder.write("bytes", &bytes);
            let options = format!("cluster_size={},compression_type={codec}", 1 << bits);
            folder.run(&format!("qemu-img convert -c -f raw -O qcow2 -o {options} bytes disk"));
            let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
            assert!(disk.read_all() == bytes, "{options}");
            let pieces = |len: usize| (0..bytes.len()).step_by(len).map(move |at| (at, len));
            for (at, len) in pieces(65536).chain(pieces(9973)) {
                let len = len.min(bytes.len() - at);
                let got = disk.run(disk.node.read_bytes(at as u64, len)).unwrap();
                assert!(got == bytes[at..at + len], "{options}: {at}+{len}");
            }
            let all =
                pieces(5000).map(|(at, len)| disk.node.read_bytes(at as u64, len.min(bytes.len() - at)));
            assert!(disk.run(join_all(all)).into_iter().flat_map(Result::unwrap).eq(bytes), "{options}");
        }
    }
}

#[test]
fn qemu_img_finds_ours_clean_and_equal_and_not_larger_than_its_own() {
    for (codec, name) in [(Codec::Deflate, "zlib"), (Codec::Zstd, "zstd")] {
        for bits in [9, 12, 16, 18, 21] {
            let (folder, bytes) = (Folder::new(), mixture((2 << 20) + (1 << bits) + 512));
            let disk = written(&options(1 << bits, codec, bytes.len()), None, &bytes, bytes.len());
            assert!(disk.read_all() == bytes);
            disk.close();
            assert_eq!(disk.bytes().len() % 512, 0, "the last sector is not there as a whole");
            folder.write("disk", &disk.bytes());
            folder.write("bytes", &bytes);
            folder.run("qemu-img check -f qcow2 disk");
            folder.run("qemu-img compare -f qcow2 -F raw disk bytes");
            let settings = format!("cluster_size={},compression_type={name}", 1 << bits);
            folder.run(&format!("qemu-img convert -c -S 0 -f raw -O qcow2 -o {settings} bytes theirs"));
            let (ours, theirs) = (disk.bytes().len(), folder.read("theirs").len());
            assert!(ours <= theirs + theirs / 50, "{settings}: {ours} bytes, qemu-img's {theirs}");
            assert!(report(&disk).compressed_clusters > 0);
        }
    }
}

#[test]
fn every_version_and_refcount_width_packs_clusters_as_far_as_it_can_count() {
    let bytes = text(3 << 20);
    for (version, refcount_bits) in [(2, 16), (3, 1), (3, 2), (3, 4), (3, 64)] {
        let options = CreateOptions { version, refcount_bits, ..options(65536, Codec::Deflate, bytes.len()) };
        let disk = written(&options, None, &bytes, 1 << 20);
        disk.close();
        let folder = Folder::new();
        folder.write("disk", &disk.bytes());
        folder.run("qemu-img check -f qcow2 disk");
        assert!(folder.content("disk", "") == bytes);
        // One to a cluster, or packed.
        let most = if refcount_bits == 1 { 3 << 20 } else { 2 << 20 };
        assert!(disk.bytes().len() < most + (600 << 10), "refcount_bits={refcount_bits}");
    }
}

#[test]
fn compressed_clusters_survive_changes_over_and_below_them() {
    for (cluster, codec, version) in [
        (512, Codec::Deflate, 2),
        (4096, Codec::Zstd, 3),
        (65536, Codec::Deflate, 3),
        (1 << 20, Codec::Zstd, 3),
    ] {
        let bytes = mixture(3 << 20);
        let options = CreateOptions { version, ..options(cluster, codec, bytes.len()) };
        let disk = written(&options, None, &bytes, 1 << 20);
        disk.close();
        let folder = Folder::new();
        folder.write("disk", &disk.bytes());
        folder.run("qemu-img snapshot -c one disk");
        folder.run("qemu-io -f qcow2 disk -c 'write -P 6 50k 60k' -c 'discard 1M 200k'");
        let now = folder.content("disk", "");
        let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
        assert!(disk.read_all() == now);
        let mut model = Model::new(disk, cluster, seed("changes"));
        (0..40).for_each(|_| model.step());
        model.disk.reopen();
        (0..20).for_each(|_| model.step());
        finish(&model);
        folder.write("disk", &model.disk.bytes());
        assert!(folder.content("disk", "-l one") == bytes, "the snapshot changed");
    }
}

#[test]
fn overlays_are_written_compressed() {
    let bytes = mixture(700 << 10);
    let backing = base(1 << 20);
    let overlay = CreateOptions {
        backing_file: Some("base".into()),
        backing_format: Some("raw".into()),
        ..options(4096, Codec::Deflate, 1 << 20)
    };
    let disk = written(&overlay, Some(backing.clone()), &bytes, 100 << 10 >> 12 << 12);
    let mut expected = backing;
    expected[..bytes.len()].copy_from_slice(&bytes);
    assert!(disk.read_all() == expected);
}

/// What is stored at a place that was used before must not show what was read from it then.
#[test]
fn rewritten_clusters_are_reused_and_read_as_they_are_now() {
    for (cluster, bits) in [(512usize, 16), (4096, 1), (65536, 2)] {
        let options =
            CreateOptions { refcount_bits: bits, ..options(cluster as u64, Codec::Deflate, 16 * cluster) };
        let disk = Disk::create(Backend::Auto, &options, None);
        let mut most = 0;
        for round in 0..60u8 {
            for index in 0..16 {
                let bytes = vec![round ^ index; cluster];
                disk.run(write_compressed(&disk.node, usize::from(index) * cluster, &bytes)).unwrap();
            }
            disk.run(disk.node.flush()).unwrap();
            for index in 0..16 {
                let at = u64::from(index) * cluster as u64 + 7;
                assert_eq!(disk.run(disk.node.read_bytes(at, 5)).unwrap(), [round ^ index; 5], "{round}");
            }
            if round == 20 {
                most = disk.bytes().len();
            }
        }
        assert!(disk.bytes().len() <= most, "the file goes on growing");
        disk.close();
        assert_eq!(report(&disk).messages, [""; 0]);
    }
}

#[test]
fn small_reads_of_one_cluster_read_and_decompress_it_once() {
    let bytes = text(1 << 20);
    let mut disk = written(&options(65536, Codec::Deflate, bytes.len()), None, &bytes, 1 << 20);
    disk.reopen();
    disk.run(disk.node.read_bytes(0, 4096)).unwrap();
    let before = disk.state.reads.get();
    let all = (0..256).map(|index| disk.node.read_bytes(index * 4096, 4096));
    assert!(disk.run(join_all(all)).into_iter().flat_map(Result::unwrap).eq(bytes));
    assert_eq!(disk.state.reads.get() - before, 15);
}

#[test]
fn only_whole_clusters_and_only_formats_that_can_are_written_compressed() {
    let disk = Disk::create(Backend::Auto, &options(65536, Codec::Deflate, 100_000 / 512 * 512), None);
    for (at, len) in [(0, 512), (512, 65536), (65536, 512), (0, 65537)] {
        let error = disk.run(write_compressed(&disk.node, at, &vec![1; len])).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{at}+{len}");
    }
    let error = disk.run(write_compressed(&disk.node, 65536, &[1; 65536])).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    disk.run(write_compressed(&disk.node, 65536, &vec![1; 99840 - 65536])).unwrap();
    let file = disk.node.driver().children()[0].1.clone();
    assert_eq!(disk.run(write_compressed(&file, 0, &[1; 512])).unwrap_err().kind(), Kind::Unsupported);
}

/// A disk of one compressed cluster of 64 KiB at 0x50000, and the place of its L2 entry.
fn one_cluster(codec: Codec, bytes: &[u8]) -> (Vec<u8>, usize) {
    let disk = written(&options(65536, codec, 65536), None, bytes, 65536);
    disk.close();
    let image = disk.bytes();
    let entry = u64::from_be_bytes(image[4 << 16..(4 << 16) + 8].try_into().unwrap());
    assert_eq!(entry & 0x3f_ffff_ffff_ffff, 5 << 16);
    (image, 4 << 16)
}

fn with_entry(image: &[u8], at: usize, sectors: u64, offset: u64) -> Vec<u8> {
    let mut image = image.to_vec();
    image[at..at + 8].copy_from_slice(&(1 << 62 | sectors << 54 | offset).to_be_bytes());
    image
}

fn read_first(image: Vec<u8>) -> Result<Vec<u8>> {
    let disk = Disk::from_bytes(Backend::Auto, image, None);
    let part = disk.run(disk.node.read_bytes(100, 50));
    let whole = disk.run(disk.node.read_bytes(0, 65536));
    assert_eq!(part.is_ok(), whole.is_ok());
    whole
}

#[test]
fn entries_and_streams_that_lie_end_in_errors() {
    for codec in [Codec::Deflate, Codec::Zstd] {
        let bytes = text(65536);
        let (image, at) = one_cluster(codec, &bytes);
        let needed = (image.len() as u64 - (5 << 16)).div_ceil(512) - 1;
        assert!(read_first(image.clone()).unwrap() == bytes);
        // Longer than need be, also past the end of the file: what follows is not looked at.
        for sectors in [needed, needed + 1, 200, 255] {
            let mut longer = with_entry(&image, at, sectors, 5 << 16);
            assert!(read_first(longer.clone()).unwrap() == bytes, "{codec:?} {sectors}");
            longer.resize(7 << 16, 0xa5);
            assert!(read_first(longer).unwrap() == bytes, "{codec:?} {sectors}");
        }
        for (sectors, offset) in
            [(0, 5 << 16), (needed - 1, 5 << 16), (needed, (5 << 16) + 512), (255, 1 << 16)]
        {
            assert_eq!(read_first(with_entry(&image, at, sectors, offset)).unwrap_err().kind(), Kind::Io);
        }
        for offset in [image.len() as u64 + 511, 1 << 30, (1 << 54) - 1] {
            assert_eq!(read_first(with_entry(&image, at, 255, offset)).unwrap_err().kind(), Kind::Io);
        }
        let mut bomb = image[..5 << 16].to_vec();
        bomb.extend(codec.compress(&vec![0; 32 << 20]).unwrap());
        assert_eq!(read_first(with_entry(&bomb, at, 255, 5 << 16)).unwrap_err().kind(), Kind::Io);
        let mut short = image[..5 << 16].to_vec();
        short.extend(codec.compress(&text(65024)).unwrap());
        assert_eq!(read_first(with_entry(&short, at, 255, 5 << 16)).unwrap_err().kind(), Kind::Io);
    }
}

#[test]
fn an_error_of_the_host_while_packing_loses_no_cluster() {
    for (cluster, bits) in [(512usize, 16), (4096, 2), (65536, 1)] {
        let options =
            CreateOptions { refcount_bits: bits, ..options(cluster as u64, Codec::Deflate, 20 * cluster) };
        let disk = Disk::create(Backend::Auto, &options, None);
        let mut model = Model::new(disk, cluster as u64, seed("errors"));
        for point in 0..120 {
            let errno = if point % 2 == 0 { libc::EIO } else { libc::ENOSPC };
            model.disk.fail_after(model.rng.random_range(0..6), errno);
            let first = model.rng.random_range(0..20) * cluster;
            let len = model.rng.random_range(1..=4) * cluster;
            let bytes = compressible(&mut model.rng, len.min(20 * cluster - first));
            let done = model.disk.run(write_compressed(&model.disk.node, first, &bytes));
            let flushed = model.disk.run(model.disk.node.flush());
            model.disk.recover();
            let now = model.disk.run(model.disk.node.read_bytes(first as u64, bytes.len())).unwrap();
            for (index, (new, wanted)) in now.chunks(cluster).zip(bytes.chunks(cluster)).enumerate() {
                let old = &mut model.content[first + index * cluster..][..cluster];
                assert!(new == wanted || done.is_err() && new == old);
                old.copy_from_slice(new);
            }
            if flushed.is_err() {
                model.disk.run(model.disk.node.flush()).unwrap();
            }
        }
        model.disk.reopen();
        finish(&model);
    }
}
