//! Whole commands of `cowvm imgtool` against the same command lines of qemu-img, in alternating runs, each with its
//! defaults, all in the page cache: how long they take, and the most memory that they have at once.
//!
//! `cargo bench --bench imgtool [-- --size 4096] [-- --rounds 5] [-- --only map,commit] [-- --dir DIR]`. `--size` is that
//! of the disk in MiB; half of it is holes, in turns of 16 MiB, and the data is compressible to about half. Outputs are
//! removed before every run, and images that a command changes are made anew. Medians of the rounds. "Floor" is what the
//! host's copies of the same bytes take when nothing else is done.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use measure::command::{Cost, cost};
use measure::{floor, in_turn, median, option};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of data or of a hole.
const TURN: u64 = 16 << 20;

/// A command line that both tools run.
struct Case {
    name: &'static str,
    /// Lines for qemu-img that come first and are not measured.
    prepare: &'static [&'static str],
    line: &'static str,
    /// What it makes.
    output: &'static str,
    /// How many runs, one after the other, make a measurement.
    times: u32,
    /// It copies the disk, and nothing else.
    is_copy: bool,
}

const fn case(name: &'static str, line: &'static str) -> Case {
    Case { name, prepare: &[], line, output: "out", times: 1, is_copy: false }
}

/// A command that copies the disk.
const fn plain(name: &'static str, line: &'static str) -> Case {
    Case { is_copy: true, ..case(name, line) }
}

/// A command of some milliseconds that changes nothing.
const fn short(name: &'static str, line: &'static str) -> Case {
    Case { times: 50, ..case(name, line) }
}

/// A command that changes what `prepare` makes.
const fn change(name: &'static str, prepare: &'static [&'static str], line: &'static str) -> Case {
    Case { prepare, ..case(name, line) }
}

/// An image over `base.raw` with a little data of its own.
const OVERLAY: &[&str] =
    &["create -q -f qcow2 -b base.raw -F raw out", "bench -q -w -c 2000 -s 65536 -S 1048576 -f qcow2 out"];

/// As [`OVERLAY`], over an image.
const OVERLAY_OF_QCOW2: &[&str] = &[
    "convert -f raw -O qcow2 base.raw below",
    "create -q -f qcow2 -b below -F qcow2 out",
    "bench -q -w -c 2000 -s 65536 -S 1048576 -f qcow2 out",
];

const CASES: &[Case] = &[
    plain("convert raw raw", "convert -f raw -O raw base.raw out"),
    plain("convert raw qcow2", "convert -f raw -O qcow2 base.raw out"),
    plain("convert qcow2 raw", "convert -f qcow2 -O raw base.qcow2 out"),
    plain("convert qcow2 qcow2", "convert -f qcow2 -O qcow2 base.qcow2 out"),
    case("convert -c zlib", "convert -c -f raw -O qcow2 base.raw out"),
    case("convert -c zstd", "convert -c -f raw -O qcow2 -o compression_type=zstd base.raw out"),
    case("convert zlib raw", "convert -f qcow2 -O raw zlib.qcow2 out"),
    case("convert zstd raw", "convert -f qcow2 -O raw zstd.qcow2 out"),
    case("convert -S 0", "convert -S 0 -f raw -O raw base.raw out"),
    plain("convert -C", "convert -C -f raw -O raw base.raw out"),
    case("dd", "dd -f raw -O raw bs=2M if=base.raw of=out"),
    case("compare raw qcow2", "compare -f raw -F qcow2 base.raw base.qcow2"),
    case("compare qcow2 zlib", "compare -f qcow2 -F qcow2 base.qcow2 zlib.qcow2"),
    short("check", "check -f qcow2 base.qcow2"),
    short("check zlib", "check -f qcow2 zlib.qcow2"),
    short("map", "map --output=json -f qcow2 base.qcow2"),
    short("measure", "measure -O qcow2 -f raw base.raw"),
    change("commit", OVERLAY, "commit -q -f qcow2 out"),
    change("commit -t unsafe", OVERLAY, "commit -q -t unsafe -f qcow2 out"),
    change("commit to qcow2", OVERLAY_OF_QCOW2, "commit -q -f qcow2 out"),
    change("rebase", OVERLAY, "rebase -f qcow2 -b base.qcow2 -F qcow2 out"),
    change("snapshot -c", &["convert -f raw -O qcow2 base.raw out"], "snapshot -c one out"),
];

fn main() {
    let rounds = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let size = option("--size").map_or(4096, |n| n.parse::<u64>().unwrap()) << 20;
    let only = option("--only").unwrap_or_default();
    let folder = tempfile::tempdir_in(option("--dir").unwrap_or_else(|| "target".into())).unwrap();
    let folder = Folder(folder.path().to_owned());
    folder.make_images(size);
    println!(
        "| command | qemu-img s | cowvm s | times as fast | floor s | qemu-img MiB | cowvm MiB | size of output |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for case in CASES.iter().filter(|case| only.split(',').any(|part| case.name.contains(part))) {
        folder.compare(case, rounds);
    }
}

/// What a run took.
struct Run {
    cost: Cost,
    /// Space that the output takes, in bytes.
    output: u64,
}

struct Folder(PathBuf);

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn qemu_img(&self, line: &str) {
        let mut command = Command::new("qemu-img");
        let output = command.args(line.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn make_images(&self, size: u64) {
        let mut file = std::fs::File::create(self.path("base.raw")).unwrap();
        file.set_len(size).unwrap();
        let mut state = 1;
        for at in (0..size).step_by(2 * TURN as usize) {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&text_like(&mut state, TURN.min(size - at))).unwrap();
        }
        self.qemu_img("convert -f raw -O qcow2 base.raw base.qcow2");
        for kind in ["zlib", "zstd"] {
            self.qemu_img(&format!(
                "convert -c -W -m 16 -f raw -O qcow2 -o compression_type={kind} base.raw {kind}.qcow2"
            ));
        }
    }

    fn compare(&self, case: &Case, rounds: usize) {
        let ours: &[&str] = &[env!("CARGO_BIN_EXE_cowvm"), "imgtool"];
        let runs = in_turn(rounds, if case.is_copy { 3 } else { 2 }, |who| match who {
            0 => self.run(case, &["qemu-img"]),
            1 => self.run(case, ours),
            _ => self.copies(),
        });
        let middle = |of: fn(&Run) -> f64| -> Vec<f64> {
            runs.iter().map(|runs| median(&mut runs.iter().map(of).collect::<Vec<_>>())).collect()
        };
        let (seconds, memory) = (middle(|run| run.cost.seconds), middle(|run| run.cost.memory));
        let output = middle(|run| run.output as f64);
        println!(
            "| {} | {:.4} | {:.4} | {:.2} | {} | {:.0} | {:.0} | {:.3} |",
            case.name,
            seconds[0],
            seconds[1],
            seconds[0] / seconds[1],
            seconds.get(2).map(|floor| format!("{floor:.4}")).unwrap_or_default(),
            memory[0],
            memory[1],
            if output[0] > 0.0 { output[1] / output[0] } else { 1.0 },
        );
    }

    fn run(&self, case: &Case, tool: &[&str]) -> Run {
        let _ = std::fs::remove_file(self.path(case.output));
        case.prepare.iter().for_each(|line| self.qemu_img(line));
        // Who writes pays for what it wrote itself.
        rustix::fs::sync();
        let cost = cost(tool, case.line, &self.0, case.times);
        Run { cost, output: space(&self.path(case.output)) }
    }

    /// What the host's copies of the same bytes take.
    fn copies(&self) -> Run {
        let is_data = |at: u64| (at / TURN).is_multiple_of(2);
        let out = self.path("out");
        let _ = std::fs::remove_file(&out);
        rustix::fs::sync();
        let seconds = floor::copies(&self.path("base.raw"), &out, is_data);
        Run { cost: Cost { seconds, memory: 0.0 }, output: space(&out) }
    }
}

/// Space that a file takes, in bytes; none if it is not there.
fn space(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
}

/// Bytes that compress to about half.
fn text_like(state: &mut u64, len: u64) -> Vec<u8> {
    let words = (0..len / 8).map(|_| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) & 0x0f0f_0f0f_0f0f_0f0f | (*state >> 20) & 0x1010_1010
    });
    words.flat_map(u64::to_le_bytes).collect()
}
