//! NBD against QEMU, in alternating runs, all in the page cache: copies from and to our server and qemu-nbd by nbdcopy
//! with 64 requests in flight; `convert` and `bench` of `cowvm imgtool` and of qemu-img from the same servers.
//!
//! `cargo bench --bench nbd [-- --size 2048] [-- --rounds 5] [-- --only bench] [-- --dir DIR]`. `--size` is that of
//! the disk in MiB; all of it is data, so that all of it goes over the socket. Medians of the rounds; every run has a
//! server of its own, which is running before the clock is.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use measure::{in_turn, median, option};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const COWVM: &str = env!("CARGO_BIN_EXE_cowvm");

/// A command line, with what it runs against.
#[derive(Clone, Copy)]
struct Run {
    /// `SOCKET` stands for the server's socket.
    server: &'static [&'static str],
    client: &'static [&'static str],
}

/// The same work by QEMU and by us.
struct Case {
    name: &'static str,
    theirs: Run,
    ours: Run,
}

const QEMU_RAW: &[&str] = &["qemu-nbd", "-k", "SOCKET", "-t", "-e", "0", "-f", "raw", "base.raw"];
const OUR_RAW: &[&str] = &[COWVM, "nbd", "-k", "SOCKET", "-t", "-e", "0", "-f", "raw", "base.raw"];
const QEMU_QCOW2: &[&str] = &["qemu-nbd", "-k", "SOCKET", "-t", "-e", "0", "-f", "qcow2", "base.qcow2"];
const OUR_QCOW2: &[&str] = &[COWVM, "nbd", "-k", "SOCKET", "-t", "-e", "0", "-f", "qcow2", "base.qcow2"];
const QEMU_TARGET: &[&str] = &["qemu-nbd", "-k", "SOCKET", "-t", "-e", "0", "-f", "raw", "target.raw"];
const OUR_TARGET: &[&str] = &[COWVM, "nbd", "-k", "SOCKET", "-t", "-e", "0", "-f", "raw", "target.raw"];
const NBDKIT: &[&str] = &["nbdkit", "-f", "-U", "SOCKET", "file", "base.raw"];

const COPY_FROM: &[&str] = &["nbdcopy", "--requests=64", "URI", "null:"];
const COPY_TO: &[&str] = &["nbdcopy", "--requests=64", "base.raw", "URI"];

/// Words of a client of QEMU's and of ours.
macro_rules! both {
    ($($word:literal),*) => {
        (&["qemu-img", $($word),*] as &[&str], &[COWVM, "imgtool", $($word),*] as &[&str])
    };
}

const CONVERT: (&[&str], &[&str]) = both!("convert", "-f", "raw", "-O", "raw", "URI", "out.raw");
const BENCH: (&[&str], &[&str]) =
    both!("bench", "-f", "raw", "-c", "200000", "-d", "64", "-s", "4096", "-t", "writeback", "URI");
const BENCH_LONG: (&[&str], &[&str]) =
    both!("bench", "-f", "raw", "-c", "20000", "-d", "16", "-s", "65536", "-t", "writeback", "URI");

/// Two servers, one client.
const fn servers(
    name: &'static str,
    servers: [&'static [&'static str]; 2],
    client: &'static [&'static str],
) -> Case {
    Case { name, theirs: Run { server: servers[0], client }, ours: Run { server: servers[1], client } }
}

/// One server, two clients.
const fn clients(
    name: &'static str,
    server: &'static [&'static str],
    clients: (&'static [&'static str], &'static [&'static str]),
) -> Case {
    Case { name, theirs: Run { server, client: clients.0 }, ours: Run { server, client: clients.1 } }
}

const CASES: &[Case] = &[
    servers("nbdcopy from a raw export", [QEMU_RAW, OUR_RAW], COPY_FROM),
    servers("nbdcopy from a qcow2 export", [QEMU_QCOW2, OUR_QCOW2], COPY_FROM),
    servers("nbdcopy to a raw export", [QEMU_TARGET, OUR_TARGET], COPY_TO),
    clients("convert from qemu-nbd", QEMU_RAW, CONVERT),
    clients("convert from nbdkit", NBDKIT, CONVERT),
    clients("bench from qemu-nbd, 64 of 4 KiB", QEMU_RAW, BENCH),
    clients("bench from nbdkit, 64 of 4 KiB", NBDKIT, BENCH),
    clients("bench from qemu-nbd, 16 of 64 KiB", QEMU_RAW, BENCH_LONG),
    clients("bench from nbdkit, 16 of 64 KiB", NBDKIT, BENCH_LONG),
];

fn main() {
    let rounds = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let size = option("--size").map_or(2048, |n| n.parse::<u64>().unwrap()) << 20;
    let only = option("--only").unwrap_or_default();
    let folder = tempfile::tempdir_in(option("--dir").unwrap_or_else(|| "target".into())).unwrap();
    let folder = Folder(folder.path().to_owned());
    folder.make_images(size);
    println!("| case | QEMU s | cowvm s | times as fast |");
    println!("| --- | ---: | ---: | ---: |");
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        let runs = [&case.theirs, &case.ours];
        let mut times = in_turn(rounds, runs.len(), |who| folder.time(runs[who], size));
        let [theirs, ours] = [0, 1].map(|who| median(&mut times[who]));
        println!("| {} | {theirs:.3} | {ours:.3} | {:.2} |", case.name, theirs / ours);
    }
}

struct Folder(PathBuf);

impl Folder {
    fn make_images(&self, size: u64) {
        let mut file = std::fs::File::create(self.0.join("base.raw")).unwrap();
        let block: Vec<u8> =
            (0..1u32 << 18).flat_map(|word| (word.wrapping_mul(2_654_435_761) | 1).to_le_bytes()).collect();
        (0..size >> 20).for_each(|_| file.write_all(&block).unwrap());
        let mut convert =
            self.command(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2"]);
        assert!(convert.status().unwrap().success());
    }

    fn command(&self, words: &[&str]) -> Command {
        let (socket, uri) = ("socket", "nbd+unix://?socket=socket");
        let mut command = Command::new(words[0]);
        // qemu-nbd wants the whole path.
        let full = self.0.join(socket);
        for word in &words[1..] {
            match *word {
                "SOCKET" => command.arg(&full),
                "URI" => command.arg(uri),
                word => command.arg(word),
            };
        }
        command.current_dir(&self.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Seconds that a client takes.
    fn time(&self, run: &Run, size: u64) -> f64 {
        for name in ["out.raw", "target.raw"] {
            let _ = std::fs::remove_file(self.0.join(name));
        }
        std::fs::File::create(self.0.join("target.raw")).unwrap().set_len(size).unwrap();
        // Who writes pays for what it wrote itself.
        rustix::fs::sync();
        let server = self.serve(run.server);
        let start = Instant::now();
        assert!(self.command(run.client).status().unwrap().success(), "{:?}", run.client);
        let seconds = start.elapsed().as_secs_f64();
        drop(server);
        seconds
    }

    /// Starts a server and waits until it greets.
    fn serve(&self, words: &[&str]) -> Server {
        let _ = std::fs::remove_file(self.0.join("socket"));
        let server = Server(self.command(words).spawn().unwrap());
        let greets = || {
            let stream = UnixStream::connect(self.0.join("socket"));
            stream.is_ok_and(|mut stream| stream.read_exact(&mut [0; 8]).is_ok())
        };
        while !greets() {
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

/// A server's process, which ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone.
        let _ = (self.0.kill(), self.0.wait());
    }
}
