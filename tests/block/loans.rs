//! Cached pages of a writable qcow2 image that are lent (`Driver::lasting_place`): whatever becomes of their clusters,
//! who has them never sees what their place of the disk did not have, and the clusters come back.

use crate::fixture::{BACKENDS, Folder, Image};
use crate::seed::seed_or;
use cowvm::block::aio::{Lender, Loan, Socket};
use cowvm::block::graph::snapshots::{NewSnapshot, Selector};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::Read;
use std::ops::Range;
use std::os::unix::net::UnixStream;

const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 48;
/// How far an image may grow that takes its clusters again, in bytes.
const ROOM: u64 = 3 * CLUSTERS * CLUSTER;

/// A disk whose clusters all say which they are, and which write they are from.
struct Disk {
    image: Image,
    lender: Lender,
    /// The write that each cluster is from; none where it reads as zeros.
    now: Vec<Option<u64>>,
    snapshots: Vec<(String, Vec<Option<u64>>)>,
    writes: u64,
}

/// Pages that were lent.
struct Lent {
    loan: Loan,
    first: u64,
    /// The writes that their clusters were from.
    since: Vec<u64>,
}

fn words(cluster: u64, write: Option<u64>) -> [u8; 8] {
    write.map_or(0, |write| cluster << 48 | write).to_be_bytes()
}

impl Disk {
    fn open(folder: &Folder) -> Disk {
        folder.qemu_img(&format!("create -q -f qcow2 -o lazy_refcounts=off disk {}", CLUSTERS * CLUSTER));
        let image = Image::open(BACKENDS[0], &folder.path("disk"), "qcow2", false);
        let now = vec![None; CLUSTERS as usize];
        Disk { image, lender: Lender::default(), now, snapshots: Vec::new(), writes: 0 }
    }

    fn write(&mut self, clusters: Range<u64>) {
        self.writes += 1;
        let content = |cluster| words(cluster, Some(self.writes)).repeat(CLUSTER as usize / 8);
        let bytes: Vec<u8> = clusters.clone().flat_map(content).collect();
        self.image.write(clusters.start * CLUSTER, &bytes);
        clusters.for_each(|cluster| self.now[cluster as usize] = Some(self.writes));
    }

    fn empty(&mut self, clusters: Range<u64>, discard: bool) {
        let (at, len) = (clusters.start * CLUSTER, (clusters.end - clusters.start) * CLUSTER);
        if discard {
            self.image.discard(at, len);
        } else {
            self.image.write_zeroes(at, len, true);
        }
        clusters.for_each(|cluster| self.now[cluster as usize] = None);
    }

    /// None where the host does not say what it has in its page cache, or the image does not allow it.
    fn lend(&self, clusters: Range<u64>) -> Option<Lent> {
        let len = (clusters.end - clusters.start) * CLUSTER;
        let place = self.image.node.driver().lasting_place(clusters.start * CLUSTER, len)?;
        let loan = self.lender.lend(&place.file, place.offset, place.len as usize)?;
        let since = clusters.clone().map(|cluster| self.now[cluster as usize].unwrap()).collect();
        Some(Lent { loan, first: clusters.start, since })
    }

    /// Takes what was lent: all of it is what its clusters had, then or later.
    fn take(&self, lent: &Lent) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = Socket::new(&self.image.engine, ours.into()).unwrap();
        let mut heard = vec![0; lent.loan.len()];
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut heard).unwrap();
            heard
        });
        self.image.engine.block_on(socket.send_loan(&lent.loan)).unwrap().unwrap();
        let heard = reader.join().unwrap();
        for (word, at) in heard.chunks_exact(8).zip((0..).step_by(8)) {
            let word = u64::from_be_bytes(word.try_into().unwrap());
            let index = at / CLUSTER;
            let (cluster, since) = (lent.first + index, lent.since[index as usize]);
            let right = word >> 48 == cluster && (since..=self.writes).contains(&(word & 0xffff_ffff_ffff));
            assert!(right, "cluster {cluster}, lent at write {since}, has {word:#x}");
        }
    }

    fn change_snapshots(&mut self, rng: &mut StdRng) {
        let driver = self.image.node.driver().snapshots().unwrap();
        let run = |work: futures_util::future::LocalBoxFuture<'_, cowvm::block::Result<()>>| {
            self.image.engine.block_on(work).unwrap().unwrap();
        };
        let which = rng.random_range(0..4);
        if which >= self.snapshots.len() {
            let name = format!("s{}", self.writes);
            let new = NewSnapshot { name: name.clone(), ..NewSnapshot::default() };
            run(Box::pin(async { driver.create(&new).await.map(|_| ()) }));
            self.snapshots.push((name, self.now.clone()));
        } else if rng.random() {
            let selector = Selector::Name(self.snapshots[which].0.clone());
            run(driver.apply(&selector));
            self.now = self.snapshots[which].1.clone();
        } else {
            let selector = Selector::Name(self.snapshots.remove(which).0);
            run(driver.delete(&selector));
        }
    }

    fn close(self, folder: &Folder) {
        self.image.close();
        folder.qemu_img("check disk");
        let content = folder.content("qcow2", "disk");
        for (cluster, bytes) in (0..).zip(content.chunks(CLUSTER as usize)) {
            let word = words(cluster, self.now[cluster as usize]);
            assert!(bytes.chunks(8).all(|found| found == word), "cluster {cluster}");
        }
    }
}

/// How long the image file is.
fn file_len(folder: &Folder) -> u64 {
    std::fs::metadata(folder.path("disk")).unwrap().len()
}

fn some(rng: &mut StdRng, most: u64) -> Range<u64> {
    let len = rng.random_range(1..=most);
    let first = rng.random_range(0..=CLUSTERS - len);
    first..first + len
}

#[test]
fn what_is_lent_is_never_other_than_what_its_place_had() {
    let mut rng = StdRng::seed_from_u64(seed_or(rand::random()));
    let folder = Folder::new();
    let mut disk = Disk::open(&folder);
    let mut lent: Vec<Lent> = Vec::new();
    for _ in 0..1000 {
        match rng.random_range(0..20) {
            0..5 => disk.write(some(&mut rng, 4)),
            5..10 => {
                let clusters = some(&mut rng, 3);
                let data = clusters.clone().all(|cluster| disk.now[cluster as usize].is_some());
                lent.extend(if data { disk.lend(clusters) } else { None });
            }
            10..12 => disk.empty(some(&mut rng, 8), true),
            12 => disk.empty(some(&mut rng, 4), false),
            13 => disk.change_snapshots(&mut rng),
            14..16 => disk.image.flush(),
            _ if lent.is_empty() => {}
            _ => disk.take(&lent.swap_remove(rng.random_range(0..lent.len()))),
        }
        if lent.len() > 20 {
            disk.take(&lent.remove(0));
        }
    }
    // Some are still out when the image is closed, and nobody writes to it.
    disk.close(&folder);
}

#[test]
fn clusters_are_taken_again_when_nobody_has_their_pages_any_more() {
    let folder = Folder::new();
    let mut disk = Disk::open(&folder);
    for round in 0..20 {
        disk.write(0..CLUSTERS / 2);
        disk.image.flush();
        let lent: Vec<Lent> = (0..CLUSTERS / 2).step_by(8).filter_map(|at| disk.lend(at..at + 8)).collect();
        disk.empty(0..CLUSTERS / 2, round % 2 == 0);
        disk.image.flush();
        disk.write(CLUSTERS / 2..CLUSTERS);
        disk.image.flush();
        lent.iter().for_each(|lent| disk.take(lent));
        disk.empty(CLUSTERS / 2..CLUSTERS, true);
        disk.image.flush();
    }
    assert!(file_len(&folder) < ROOM, "{} bytes", file_len(&folder));
    disk.close(&folder);
}

#[test]
fn who_never_takes_his_pages_withholds_them_and_no_others() {
    let folder = Folder::new();
    let mut disk = Disk::open(&folder);
    disk.write(0..CLUSTERS);
    disk.image.flush();
    let Some(kept) = disk.lend(0..4) else {
        return eprintln!("this host does not lend");
    };
    for _ in 0..20 {
        disk.empty(0..CLUSTERS, true);
        disk.image.flush();
        disk.write(0..CLUSTERS);
        disk.image.flush();
        drop(disk.lend(8..16));
    }
    assert!(file_len(&folder) < ROOM, "{} bytes", file_len(&folder));
    disk.take(&kept);
    disk.close(&folder);
}
