//! Our client against servers of other hands.

use crate::harness::{BACKENDS, Folder, Image, random_file, seed};
use cowvm::block::aio::Backend;
use cowvm::block::options::{CacheMode, OpenOptions};
use cowvm::block::{Buffer, Kind};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SIZE: usize = 4 << 20;

/// Random requests, many at a time where they do not touch each other, against an array of bytes.
pub(crate) fn agrees_with_the_model(image: &Image, model: &mut [u8], seed: u64, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..steps {
        let len = rng.random_range(1..=200_000usize).min(model.len());
        let at = rng.random_range(0..=model.len() - len);
        let (offset, range) = (at as u64, at..at + len);
        match rng.random_range(0..10) {
            0..4 => {
                let mut bytes = vec![0; len];
                rng.fill(&mut bytes[..]);
                image.write(offset, &bytes);
                model[range].copy_from_slice(&bytes);
            }
            4..8 => assert_eq!(image.read(offset, len), model[range]),
            8 => {
                let unmap = rng.random();
                let done = image.engine.block_on(image.node.write_zeroes(offset, len as u64, unmap));
                done.unwrap().unwrap();
                model[range].fill(0);
            }
            _ => image.flush(),
        }
    }
    assert_eq!(image.read(0, model.len()), model);
}

/// A batch of writes and then of reads, 64 at a time.
pub(crate) fn keeps_many_in_flight(image: &Image, model: &mut [u8], seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let step = model.len() / 64;
    rng.fill(model);
    let node = &image.node;
    let writes = (0..64).map(|i| {
        let part = Buffer::from_bytes(&model[i * step..(i + 1) * step]).iov(step);
        async move { node.write((i * step) as u64, &part).await }
    });
    let done = image.engine.block_on(join_all(writes)).unwrap();
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    let reads = (0..64).map(|i| node.read_bytes((i * step) as u64, step));
    for (i, read) in image.engine.block_on(join_all(reads)).unwrap().into_iter().enumerate() {
        assert_eq!(read.unwrap(), model[i * step..(i + 1) * step]);
    }
}

fn works_with(program: &str, line: &str, export: &str, size: usize) {
    let seed = seed();
    for backend in BACKENDS {
        let folder = Folder::new();
        let mut model = random_file(&folder.path("disk"), size, seed);
        let _server = folder.serve(program, line);
        let image = Image::open(backend, &folder.uri(export));
        assert_eq!(image.node.size(), size as u64);
        assert_eq!(image.read(0, size), model);
        keeps_many_in_flight(&image, &mut model, seed);
        agrees_with_the_model(&image, &mut model, seed, 60);
        image.close();
        assert_eq!(std::fs::read(folder.path("disk")).unwrap(), model);
    }
}

#[test]
fn requests_to_qemu_nbd_agree_with_a_model() {
    works_with("qemu-nbd", "-t -f raw -x name --discard=unmap disk", "name", SIZE);
}

#[test]
fn requests_to_our_own_server_agree_with_a_model() {
    works_with("ours/qemu-nbd", "-t -f raw -x name --discard=unmap disk", "name", SIZE);
}

#[test]
fn requests_to_nbdkit_agree_with_a_model() {
    works_with("nbdkit", "file disk", "", SIZE);
}

#[test]
fn a_server_of_the_old_style_is_spoken_to_in_the_old_style() {
    let folder = Folder::new();
    let mut model = random_file(&folder.path("disk"), SIZE, 3);
    let _server = folder.serve("nbdkit", "-o file disk");
    let image = Image::open(Backend::Auto, &folder.uri(""));
    // No flush: nbdkit offers it there and does not take it.
    keeps_many_in_flight(&image, &mut model, 3);
    assert_eq!(image.read(0, SIZE), model);
    let named = Image::try_open(Backend::Auto, &folder.uri("name"), &OpenOptions::default());
    assert_eq!(named.err().unwrap().message(), "Server does not support non-empty export names");
}

#[test]
fn a_server_without_chunks_is_spoken_to_without_them() {
    works_with("nbdkit", "--no-sr file disk", "", SIZE);
}

#[test]
fn constraints_of_the_server_are_kept() {
    let policy = "--filter=blocksize-policy file disk blocksize-minimum=4096 blocksize-preferred=4096 \
                  blocksize-maximum=65536 blocksize-error-policy=error";
    works_with("nbdkit", policy, "", SIZE);
}

#[test]
fn errors_of_the_server_are_errors_of_the_request_and_nothing_more() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 1);
    let trigger = folder.path("broken");
    let _server = folder.serve(
        "nbdkit",
        &format!("--filter=error file disk error=ENOSPC error-rate=1 error-file={}", trigger.display()),
    );
    let image = Image::open(Backend::Auto, &folder.uri(""));
    let before = image.read(0, 4096);
    std::fs::write(&trigger, "").unwrap();
    let iov = Buffer::from_bytes(&[1; 4096]).iov(4096);
    let error = image.engine.block_on(image.node.write(0, &iov)).unwrap().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (Kind::NoSpace, libc::ENOSPC));
    assert_eq!(error.file().unwrap().to_str().unwrap(), folder.uri(""));
    std::fs::remove_file(&trigger).unwrap();
    assert_eq!(image.read(0, 4096), before);
}

#[test]
fn a_write_through_client_needs_no_flush() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 1);
    let _server = folder.serve("qemu-nbd", "-t -f raw disk");
    let options = OpenOptions {
        format: Some("raw".into()),
        read_only: false,
        cache: CacheMode { direct: false, writeback: false, no_flush: false },
        ..OpenOptions::default()
    };
    let image = Image::try_open(Backend::Auto, &folder.uri(""), &options).unwrap();
    image.write(5, b"durable");
    image.flush();
    assert_eq!(&std::fs::read(folder.path("disk")).unwrap()[5..12], b"durable");
}

#[test]
fn an_export_that_cannot_be_written_is_opened_to_read_only() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 1);
    let _server = folder.serve("qemu-nbd", "-t -r -f raw disk");
    let writing = OpenOptions { format: Some("raw".into()), read_only: false, ..OpenOptions::default() };
    let refused = Image::try_open(Backend::Auto, &folder.uri(""), &writing);
    assert_eq!(refused.err().unwrap().kind(), Kind::ReadOnly);
    assert!(Image::try_open(Backend::Auto, &folder.uri(""), &OpenOptions::default()).is_ok());
}

#[test]
fn an_image_never_names_an_export() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 1);
    let _server = folder.serve("qemu-nbd", "-t -e 0 -f raw disk");
    for name in [folder.uri(""), format!("nbd:unix:{}", folder.socket())] {
        folder.run_of("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &name, "-F", "raw", "over"]);
        let over = folder.path("over");
        let opened = Image::try_open(Backend::Auto, over.to_str().unwrap(), &OpenOptions::default());
        let error = opened.err().unwrap();
        assert!(error.message().contains("Unknown protocol 'nbd"), "{error}");
    }
}

#[test]
fn the_image_on_an_export_may_have_any_format() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 1);
    folder.run("qemu-img", "convert -f raw -O qcow2 disk image");
    let _server = folder.serve("qemu-nbd", "-t -e 0 -f raw image");
    assert!(folder.run("ours/qemu-img", &format!("info {}", folder.uri(""))).contains("file format: qcow2"));
    folder.run("ours/qemu-img", &format!("compare -F raw {} disk", folder.uri("")));
}
