//! Images that the real qemu-img made: read, written at random, and judged by the real qemu-img again.
//!
//! Each recipe makes `disk` (qcow2) in a folder of its own. Before anything is written cowvm must read what
//! qemu-img reads; afterwards `qemu-img check` must find nothing, the content must equal the model, and every
//! internal snapshot must read as it did before.

use crate::fixture::{BACKENDS, Folder, Image};
use cowvm::block::aio::Backend;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Size of every disk, in bytes: a few clusters even of the largest size.
const SIZE: u64 = 10 << 20;
const CLUSTERS: [u32; 4] = [512, 4096, 65536, 2 << 20];
const VERSIONS: [&str; 2] = ["0.10", "1.1"];

/// qemu-io commands that scatter data over the disk.
const SCATTER: [&str; 5] = [
    "write -P 1 0 100k",
    "write -P 2 1M 3M",
    "write -P 3 4500k 1k",
    "write -P 4 8M 64k",
    "write -P 5 10239k 1k",
];

fn create(folder: &Folder, options: &str) {
    folder.qemu_img(&format!("create -q -f qcow2 -o {options} disk {SIZE}"));
}

/// A raw base of random bytes, `size` long.
fn random_base(folder: &Folder, size: usize) {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(size as u64).fill(&mut bytes[..]);
    std::fs::write(folder.path("base.raw"), bytes).unwrap();
}

/// Runs one recipe through the whole judgement.
fn judge(name: &str, snapshots: &[&str], make: impl FnOnce(&Folder)) {
    let seed = rand::random();
    println!("{name}: seed {seed}");
    let folder = Folder::new();
    make(&folder);
    let backend = BACKENDS[seed as usize % 2];
    let mut model = folder.content("qcow2", "disk");
    let before: Vec<_> = snapshots.iter().map(|tag| snapshot_content(&folder, tag)).collect();
    reads_the_same(&folder, backend, &model, name);
    write_at_random(&folder, backend, &mut model, &mut StdRng::seed_from_u64(seed));
    folder.qemu_img("check -q -f qcow2 disk");
    std::fs::write(folder.path("model"), &model).unwrap();
    folder.qemu_img("compare -f qcow2 -F raw disk model");
    for (tag, content) in snapshots.iter().zip(before) {
        assert!(snapshot_content(&folder, tag) == content, "{name}: snapshot {tag} changed");
    }
}

fn snapshot_content(folder: &Folder, tag: &str) -> Vec<u8> {
    folder.qemu_img(&format!("convert -f qcow2 -O raw -l snapshot.name={tag} disk snapshot"));
    std::fs::read(folder.path("snapshot")).unwrap()
}

fn reads_the_same(folder: &Folder, backend: Backend, model: &[u8], name: &str) {
    let image = Image::open(backend, &folder.path("disk"), "qcow2", true);
    assert_eq!(image.node.size(), model.len() as u64, "{name}");
    for start in (0..model.len()).step_by(700_001) {
        let len = 700_001.min(model.len() - start);
        assert!(image.read(start as u64, len) == model[start..start + len], "{name}: at {start}");
    }
    image.close();
}

fn write_at_random(folder: &Folder, backend: Backend, model: &mut [u8], rng: &mut StdRng) {
    let image = Image::open(backend, &folder.path("disk"), "qcow2", false);
    for _ in 0..60 {
        let at = rng.random_range(0..model.len());
        let len = rng.random_range(1..=150_000.min(model.len() - at));
        match rng.random_range(0..10) {
            0 => {
                image.write_zeroes(at as u64, len as u64, true);
                model[at..at + len].fill(0);
            }
            1 => image.flush(),
            _ => {
                rng.fill(&mut model[at..at + len]);
                image.write(at as u64, &model[at..at + len]);
            }
        }
    }
    image.close();
}

/// Every version with every cluster size, made by `make` from its options.
fn all_sizes(what: &str, snapshots: &[&str], make: impl Fn(&Folder, &str)) {
    for version in VERSIONS {
        for cluster in CLUSTERS {
            let options = format!("compat={version},cluster_size={cluster}");
            judge(&format!("{what}, {options}"), snapshots, |folder| make(folder, &options));
        }
    }
}

#[test]
fn plain_images_are_read_and_written_as_qemu_does() {
    all_sizes("plain", &[], |folder, options| {
        create(folder, options);
        folder.qemu_io("qcow2", "disk", &SCATTER);
    });
}

#[test]
fn images_over_a_shorter_raw_base_are_read_and_written_as_qemu_does() {
    all_sizes("raw base", &[], |folder, options| {
        random_base(folder, 5_000_192);
        folder.qemu_img(&format!("create -q -f qcow2 -b base.raw -F raw -o {options} disk {SIZE}"));
        folder.qemu_io("qcow2", "disk", &["write -P 9 4M 2M", "write -P 8 100 1000"]);
    });
}

#[test]
fn compressed_images_are_read_and_written_as_qemu_does() {
    all_sizes("compressed", &[], |folder, options| {
        // Half noise, half text: some clusters compress, some do not.
        random_base(folder, SIZE as usize);
        folder.qemu_io("raw", "base.raw", &["write -P 7 1M 5M"]);
        folder.qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} base.raw disk"));
    });
}

#[test]
fn images_with_internal_snapshots_are_read_and_written_as_qemu_does() {
    all_sizes("snapshots", &["first", "second"], |folder, options| {
        create(folder, options);
        folder.qemu_io("qcow2", "disk", &SCATTER);
        folder.qemu_img("snapshot -c first disk");
        folder.qemu_io("qcow2", "disk", &["write -P 11 2M 1M", "write -P 12 9M 5k"]);
        folder.qemu_img("snapshot -c second disk");
        folder.qemu_io("qcow2", "disk", &["write -P 13 0 50k"]);
    });
}

#[test]
fn images_of_every_refcount_width_are_read_and_written_as_qemu_does() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let snapshots: &[_] = if bits == 1 { &[] } else { &["only"] };
        judge(&format!("refcount_bits={bits}"), snapshots, |folder| {
            create(folder, &format!("refcount_bits={bits},cluster_size=4096"));
            folder.qemu_io("qcow2", "disk", &SCATTER);
            if bits > 1 {
                folder.qemu_img("snapshot -c only disk");
                folder.qemu_io("qcow2", "disk", &["write -P 13 0 50k"]);
            }
        });
    }
}

#[test]
fn images_with_zero_clusters_are_read_and_written_as_qemu_does() {
    for cluster in CLUSTERS {
        judge(&format!("zero clusters of {cluster}"), &[], |folder| {
            random_base(folder, SIZE as usize);
            folder.qemu_img(&format!("create -q -f qcow2 -b base.raw -F raw -o cluster_size={cluster} disk"));
            folder.qemu_io(
                "qcow2",
                "disk",
                &["write -P 1 0 4M", "write -z 2M 4M", "write -zu 512k 1M", "discard 7M 2M"],
            );
        });
    }
}

#[test]
fn preallocated_lazy_and_chained_images_are_read_and_written_as_qemu_does() {
    for option in
        ["preallocation=metadata", "preallocation=falloc", "preallocation=full", "lazy_refcounts=on"]
    {
        judge(option, &[], |folder| {
            create(folder, option);
            folder.qemu_io("qcow2", "disk", &SCATTER);
        });
    }
    judge("a chain of compressed, zeroed and plain images", &["mark"], |folder| {
        random_base(folder, 7_000_064);
        folder.qemu_img("convert -c -f raw -O qcow2 base.raw lower");
        folder.qemu_img("create -q -f qcow2 -b lower -F qcow2 -o cluster_size=4k middle 9M");
        folder.qemu_io("qcow2", "middle", &["write -z 1M 2M", "write -P 6 5M 100k"]);
        folder.qemu_img(&format!("create -q -f qcow2 -b middle -F qcow2 -o cluster_size=128k disk {SIZE}"));
        folder.qemu_io("qcow2", "disk", &["write -P 3 6M 3M"]);
        folder.qemu_img("snapshot -c mark disk");
    });
}
