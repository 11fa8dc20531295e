//! Images that contradict themselves: what `check` says of them, and that they are refused or left as they are.

use super::memory::{Disk, Folder, State, driver, open};
use super::model::seed;
use crate::block::Kind;
use crate::block::aio::{Backend, Engine};
use crate::block::format::qcow2::CreateOptions;
use crate::block::graph::driver::{Check, CheckReport};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::rc::Rc;

fn engine_and_state(bytes: &[u8]) -> (Rc<Engine>, Rc<State>) {
    let state = State { bytes: RefCell::new(bytes.to_vec()), ..State::default() };
    (Engine::new(Backend::Auto).unwrap(), Rc::new(state))
}

fn our_report(bytes: &[u8]) -> Option<CheckReport> {
    let (engine, state) = engine_and_state(bytes);
    let image = driver(&engine, &state, None, true).ok()?;
    Some(engine.block_on(image.check()).unwrap().unwrap())
}

/// What the real qemu-img says: counts from its JSON, messages from stderr.
fn their_report(folder: &Folder) -> Option<CheckReport> {
    let output = folder.try_run("qemu-img check -f qcow2 --output=json disk");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let count = |name: &str| json.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    // Besides its findings it says when it gives up, and what reading the image would do.
    let finding = |line: &&str| !line.starts_with("qemu-img: ") && !line.starts_with("qcow2: Image is corrupt");
    let messages = String::from_utf8_lossy(&output.stderr).lines().filter(finding).map(str::to_owned).collect();
    Some(CheckReport {
        corruptions: count("corruptions"),
        leaks: count("leaks"),
        check_errors: count("check-errors"),
        total_clusters: count("total-clusters"),
        allocated_clusters: count("allocated-clusters"),
        fragmented_clusters: count("fragmented-clusters"),
        compressed_clusters: count("compressed-clusters"),
        image_end_offset: count("image-end-offset"),
        messages,
    })
}

/// An image with data, zero and compressed clusters and a snapshot.
fn sample(folder: &Folder, options: &str) -> Vec<u8> {
    folder.run(&format!("qemu-img create -q -f qcow2 -o {options} plain 1M"));
    folder.run("qemu-io -f qcow2 plain -c 'write -P 1 0 100k' -c 'write -P 2 300k 50k'");
    folder.run(&format!("qemu-img convert -c -f qcow2 -O qcow2 -o {options} plain disk"));
    folder.run(
        "qemu-io -f qcow2 disk -c 'write -P 3 120k 90k' -c 'write -P 4 512k 90k' -c 'write -z 700k 64k'",
    );
    folder.run("qemu-img snapshot -c one disk");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 5 130k 10k' -c 'write -P 6 900k 50k'");
    folder.read("disk")
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Offsets of 8-byte entries that hold something: of the L1 table, the L2 tables and the refcount table.
fn entries(bytes: &[u8], cluster: usize) -> Vec<usize> {
    let used = |from: usize, len: usize| {
        (from..from + len)
            .step_by(8)
            .filter(|&at| at + 8 <= bytes.len() && be64(bytes, at) != 0)
            .collect::<Vec<_>>()
    };
    let l1 =
        used(be64(bytes, 40) as usize, 8 * u32::from_be_bytes(bytes[36..40].try_into().unwrap()) as usize);
    let l2 = l1.iter().flat_map(|&at| used((be64(bytes, at) & 0xff_ffff_ffff_fe00) as usize, cluster));
    let refcount_table = used(be64(bytes, 48) as usize, cluster);
    l1.iter().copied().chain(l2).chain(refcount_table).collect()
}

/// Compares, and shows the first difference alone.
fn agree(ours: Option<CheckReport>, theirs: Option<CheckReport>, what: &str) {
    let (Some(mut ours), Some(mut theirs)) = (ours, theirs) else {
        panic!("{what}: one of us cannot check it");
    };
    let (our_words, their_words) = (std::mem::take(&mut ours.messages), std::mem::take(&mut theirs.messages));
    for (a, b) in our_words.iter().zip(&their_words) {
        assert_eq!(a, b, "{what}");
    }
    assert_eq!(our_words.len(), their_words.len(), "{what}");
    assert_eq!(ours, theirs, "{what}");
}

#[test]
fn check_says_what_qemu_img_says_of_damaged_images() {
    for (options, cluster) in [("cluster_size=4k", 4096), ("cluster_size=64k", 65536), ("compat=0.10", 65536)]
    {
        let (folder, seed) = (Folder::new(), seed(options));
        let mut rng = StdRng::seed_from_u64(seed);
        let good = sample(&folder, options);
        assert_eq!(our_report(&good), their_report(&folder));
        let places = entries(&good, cluster);
        let refcount_block = be64(&good, be64(&good, 48) as usize) as usize;
        for _ in 0..60 {
            let mut bytes = good.clone();
            let place = places[rng.random_range(0..places.len())];
            let what = match rng.random_range(0..6) {
                0 => {
                    let at = refcount_block + rng.random_range(0..80);
                    bytes[at] = rng.random_range(0..3);
                    "refcount"
                }
                1 => {
                    bytes[place..place + 8].fill(0);
                    "no entry"
                }
                2 => {
                    let other = places[rng.random_range(0..places.len())];
                    bytes.copy_within(other..other + 8, place);
                    "another entry"
                }
                3 => {
                    bytes[place] ^= 0x80;
                    "copied flag"
                }
                4 => {
                    bytes[place + 6] ^= 0x02 << rng.random_range(0..6);
                    "offset"
                }
                _ => {
                    bytes[place + 2] ^= 1;
                    "past the end"
                }
            };
            folder.write("disk", &bytes);
            agree(our_report(&bytes), their_report(&folder), &format!("{what} at {place:#x}"));
        }
    }
}
