//! What only qcow2 has, against qemu-img in alternating runs, all in the page cache: writes that allocate, copy on
//! write, compressed clusters, encryption.
//!
//! `cargo bench --bench qcow2 [-- --rounds 5] [-- --only zstd]`. Requests go through `qemu-img bench` with its
//! thread pool and with io_uring; the ratio is ours to its best. "Floor" is what the host's copies or the codec take when
//! nothing else is done, on as many threads as requests are in flight and processors there. Writes begin with a fresh image each time.
//! Medians of the rounds; MB a second. `qemu-img bench` takes no keys: reading and writing encrypted images is measured
//! by whole `convert` commands of both tools, from and to a raw file.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use cowvm::block::options::OpenOptions;
use measure::{Requests, floor, in_turn, median, option};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const DISK: u64 = 512 << 20;
const SECRET: &str = "secret,id=key,data=open sesame";
/// A prime number of 64 KiB: visits every cluster once, far apart.
const STRIDE: u64 = 1009 * (64 << 10);
const ENGINES: [&str; 2] = ["threads", "io_uring"];

/// How the image of a workload is made, by words for qemu-img.
struct Recipe {
    name: &'static str,
    /// Made before every run; otherwise `image` is there already.
    create: &'static [&'static str],
    image: &'static str,
    writes: bool,
}

const RECIPES: [Recipe; 4] = [
    Recipe {
        name: "allocate",
        create: &["create", "-f", "qcow2", "fresh", "512M"],
        image: "fresh",
        writes: true,
    },
    Recipe {
        name: "copy-on-write",
        create: &["create", "-f", "qcow2", "-b", "base", "-F", "raw", "fresh", "512M"],
        image: "fresh",
        writes: true,
    },
    Recipe { name: "zlib", create: &[], image: "zlib", writes: false },
    Recipe { name: "zstd", create: &[], image: "zstd", writes: false },
];

fn main() {
    let rounds = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let only = option("--only").unwrap_or_default();
    let folder = tempfile::tempdir_in(option("--dir").unwrap_or_else(|| "target".into())).unwrap();
    let folder = Folder(folder.path().to_owned());
    folder.make_base();
    for kind in ["zlib", "zstd"] {
        let kind_option = format!("compression_type={kind}");
        folder.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &kind_option, "base", kind]);
    }
    println!("| workload | QEMU default | QEMU best | cowvm | cowvm / best | floor |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for recipe in &RECIPES {
        for size in [4 << 10, 64 << 10] {
            for depth in [1, 16] {
                let name = format!("{}-{}k-{depth}", recipe.name, size >> 10);
                if name.contains(&only) {
                    folder.compare(&name, recipe, size, depth, rounds);
                }
            }
        }
    }
    if only.is_empty() || only.starts_with("luks") {
        folder.compare_encrypted(rounds);
    }
}

struct Folder(PathBuf);

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn qemu_img(&self, words: &[&str]) {
        let output = Command::new("qemu-img").args(words).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Text-like bytes that compress to about half.
    fn make_base(&self) {
        let mut state = 1u64;
        let words = (0..DISK / 8).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) & 0x0f0f_0f0f_0f0f_0f0f | (state >> 20) & 0x1010_1010
        });
        std::fs::write(self.path("base"), words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    }

    fn compare(&self, name: &str, recipe: &Recipe, size: u64, depth: u64, rounds: usize) {
        let step = if recipe.writes { STRIDE } else { size };
        let count = if recipe.writes { DISK / (64 << 10) } else { (size << 13).min(DISK) / size };
        let requests = Requests { write: recipe.writes, size, step, depth, count };
        let path = self.path(recipe.image);
        let options = OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() };
        let arguments = ["-f", "qcow2", path.to_str().unwrap()];
        let times = in_turn(rounds, 4, |who| {
            self.prepare(recipe);
            match who {
                0 | 1 => requests.qemu(&arguments, "writeback", ENGINES[who]),
                2 => requests.cowvm(&path, &options),
                _ => self.floor(recipe, &requests),
            }
        });
        let rates = times.into_iter().map(|mut times| (count * size) as f64 / median(&mut times) / 1e6);
        let [threads, ring, ours, floor] = rates.collect::<Vec<_>>()[..] else {
            unreachable!("four take part")
        };
        let best = threads.max(ring);
        println!("| {name} | {threads:.0} | {best:.0} | {ours:.0} | {:.2} | {floor:.0} |", ours / best);
    }

    /// Seconds for what of the requests is left when all the work of an image format is taken away.
    fn floor(&self, recipe: &Recipe, requests: &Requests) -> f64 {
        let &Requests { write, size, depth, count, .. } = requests;
        if !write {
            let mut content = vec![0; 4 << 20];
            File::open(self.path("base")).unwrap().read_exact(&mut content).unwrap();
            let clusters = (count * size).div_ceil(64 << 10);
            return floor::decoding(&content, recipe.name == "zstd", depth, clusters);
        }
        let base = self.path("base");
        let base = recipe.create.contains(&"base").then_some(base.as_path());
        floor::writes(&self.path("floor"), base, depth, count, size)
    }

    /// Whole commands that encrypt a disk and that decrypt it again.
    fn compare_encrypted(&self, rounds: usize) {
        let luks = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
        let image = "driver=qcow2,file.filename=luks,encrypt.key-secret=key";
        let write = ["convert", "--object", SECRET, "-f", "raw", "-O", "qcow2", "-o", luks, "base", "luks"];
        let read = ["convert", "--object", SECRET, "--image-opts", image, "-O", "raw", "out"];
        let ours = env!("CARGO_BIN_EXE_cowvm");
        for (name, words, target) in [("luks-write", &write[..], "luks"), ("luks-read", &read[..], "out")] {
            let mut times = in_turn(rounds, 2, |who| match who {
                0 => self.seconds(Command::new("qemu-img").args(words), target),
                _ => self.seconds(Command::new(ours).arg("imgtool").args(words), target),
            });
            let [theirs, ours] = [0, 1].map(|who| DISK as f64 / median(&mut times[who]) / 1e6);
            println!("| {name} | {theirs:.0} | {theirs:.0} | {ours:.0} | {:.2} | |", ours / theirs);
        }
    }

    /// How long a command takes that makes `target` anew.
    fn seconds(&self, command: &mut Command, target: &str) -> f64 {
        let _ = std::fs::remove_file(self.path(target));
        // Who writes pays for what it wrote itself.
        rustix::fs::sync();
        let start = Instant::now();
        assert!(command.current_dir(&self.0).status().unwrap().success());
        start.elapsed().as_secs_f64()
    }

    fn prepare(&self, recipe: &Recipe) {
        if recipe.create.is_empty() {
            return warm(&self.path(recipe.image));
        }
        // A new file: nobody pays for giving back the old one's space.
        let _ = std::fs::remove_file(self.path(recipe.image));
        self.qemu_img(recipe.create);
        rustix::fs::sync();
        warm(&self.path("base"));
    }
}

/// Brings a file into the page cache.
fn warm(path: &Path) {
    let mut file = std::fs::File::open(path).unwrap();
    std::io::copy(&mut file, &mut std::io::sink()).unwrap();
}
