//! A host that fails: EIO and ENOSPC at every write and flush. The guest gets the error, what was there stays,
//! no cluster is lost, and the next request works.

use super::memory::Disk;
use super::model::{Model, base, finish, seed};
use crate::block::aio::Backend;
use crate::block::format::qcow2::CreateOptions;
use crate::block::{Buffer, Kind};
use rand::Rng;

fn fails_well(name: &str, options: &CreateOptions, backing: Option<Vec<u8>>) {
    let disk = Disk::create(Backend::Auto, options, backing);
    let mut model = Model::new(disk, options.cluster_size, seed(name));
    for point in 0..250 {
        let kind = if point % 2 == 0 { Kind::Io } else { Kind::NoSpace };
        model.disk.state.fail.set(Some((model.rng.random_range(0..6), kind)));
        let size = model.content.len();
        let start = model.rng.random_range(0..size - 1);
        let len = model.rng.random_range(1..=(3 * options.cluster_size as usize).min(size - start));
        let mut bytes = vec![0; len];
        let node = model.disk.node.clone();
        let done = match point % 5 {
            0 => model.disk.run(node.write_zeroes(start as u64, len as u64, model.rng.random())),
            _ => {
                model.rng.fill(&mut bytes[..]);
                model.disk.run(node.write(start as u64, &Buffer::from_bytes(&bytes).iov(len)))
            }
        };
        let flushed = model.disk.run(node.flush());
        model.disk.state.fail.set(None);
        if let Err(error) = &done {
            assert_eq!((error.kind(), error.message()), (kind, "injected"));
        }
        let now = model.disk.run(node.read_bytes(start as u64, len)).unwrap();
        for (at, (new, wanted)) in now.iter().zip(&bytes).enumerate() {
            let old = &mut model.content[start + at];
            assert!(new == wanted || done.is_err() && new == old, "byte {at} at {start}");
            *old = *new;
        }
        if flushed.is_err() {
            model.disk.run(node.flush()).unwrap();
        }
    }
    model.disk.reopen();
    finish(&model);
}

#[test]
fn an_error_of_the_host_costs_nothing_but_the_request() {
    for (cluster_size, refcount_bits) in [(512, 16), (4096, 16), (65536, 1)] {
        let options =
            CreateOptions { size: 900 << 10, cluster_size, refcount_bits, ..CreateOptions::default() };
        fails_well("plain", &options, None);
        let overlay = CreateOptions {
            backing_file: Some("base".into()),
            backing_format: Some("raw".into()),
            ..options
        };
        fails_well("overlay", &overlay, Some(base(500_000)));
    }
}
