//! VM snapshots of a guest with half of its memory in use, against QEMU in alternating runs.
//!
//! `cargo bench --bench savevm [-- --rounds 5] [-- --memory 1024] [-- --dir FOLDER]`. Both boot one boot sector of ours
//! from a qcow2 disk, QEMU under its emulation, as it needs no KVM, and cowvm on `/dev/kvm`; it marks every page of half
//! of the memory (MiB) and halts, so that nothing but the snapshots is timed. A round is `savevm` and `delvm`, `savevm`,
//! `loadvm` and `delvm` in each: seconds from a command in the monitor to the next prompt, and from STOP to RESUME, as QMP
//! has them; medians of the rounds.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use measure::{median, option};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A command, and what is said of it. A `delvm` after a `loadvm` frees nothing in QEMU, which leaves the VM state behind
/// the live disk.
const STEPS: [(&str, &str); 5] = [
    ("savevm s", "savevm"),
    ("delvm s", "delvm"),
    ("savevm s", "savevm"),
    ("loadvm s", "loadvm"),
    ("delvm s", "delvm after a loadvm"),
];
/// Where the boot sector has the number of pages that it marks.
const COUNT_AT: usize = 504;

// Goes to 32-bit mode, writes to each page from 16 MiB on its address, says that on the serial port, and waits.
core::arch::global_asm!(
    ".section .rodata.bench_guest, \"a\"",
    ".code16",
    ".global bench_guest_start",
    "bench_guest_start:",
    "cli; xor ax, ax; mov ds, ax",
    // lgdt [gdtr]
    ".byte 0x0f, 0x01, 0x16; .word 40f - bench_guest_start + 0x7c00",
    "mov eax, cr0; or al, 1; mov cr0, eax",
    // Far jump to the code segment.
    ".byte 0xea; .word 10f - bench_guest_start + 0x7c00, 8",
    ".code32",
    "10: mov ax, 16; mov ds, ax",
    "mov edi, 0x1000000; mov ecx, [0x7c00 + 504]",
    "20: mov [edi], edi; add edi, 4096; dec ecx; jnz 20b",
    "mov dx, 0x3f8; mov al, 0x21; out dx, al",
    "30: hlt; jmp 30b",
    "40: .word 23; .long 50f - bench_guest_start + 0x7c00",
    "50: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff",
    ".global bench_guest_end",
    "bench_guest_end:",
    ".code64",
    ".text",
);

fn main() {
    let rounds = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let memory: u32 = option("--memory").map_or(1024, |n| n.parse().unwrap());
    let folder = tempfile::tempdir_in(option("--dir").unwrap_or_else(|| "target".into())).unwrap();
    let image = |name: &str| make_disk(folder.path(), name, memory);
    let mut theirs = Vm::qemu(&image("theirs"), memory);
    let mut ours = Vm::cowvm(&image("ours"), memory);
    let mut times = Times::new();
    for _ in 0..rounds {
        for (step, what) in STEPS {
            for (vm, who) in [(&mut theirs, 0), (&mut ours, 1)] {
                let (seconds, pause) = vm.time(step);
                times.entry(what.to_owned()).or_default()[who].push(seconds);
                if let Some(pause) = pause {
                    times.entry(format!("{what}: pause of the guest")).or_default()[who].push(pause);
                }
            }
        }
    }
    [theirs, ours].into_iter().for_each(Vm::quit);
    println!("| guest of {memory} MiB, half in use | QEMU s | cowvm s | times as fast |");
    println!("| --- | ---: | ---: | ---: |");
    for (what, [theirs, ours]) in &mut times {
        let (theirs, ours) = (median(theirs), median(ours));
        println!("| {what} | {theirs:.3} | {ours:.3} | {:.2} |", theirs / ours);
    }
}

/// Seconds by what took them, QEMU's and cowvm's.
type Times = BTreeMap<String, [Vec<f64>; 2]>;

/// A qcow2 disk with the boot sector.
fn make_disk(folder: &Path, name: &str, memory: u32) -> PathBuf {
    unsafe extern "C" {
        static bench_guest_start: u8;
        static bench_guest_end: u8;
    }
    let (start, end) = (&raw const bench_guest_start, &raw const bench_guest_end);
    // SAFETY: both labels are in the block of constants above, in this order.
    let code = unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    let mut sector = code.to_vec();
    sector.resize(COUNT_AT, 0);
    sector.extend((memory * 128).to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let (raw, path) = (folder.join(name).with_extension("raw"), folder.join(name));
    fs::write(&raw, sector).unwrap();
    let converted =
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &path]).status();
    assert!(converted.unwrap().success());
    path
}

fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// When an event happened.
fn seconds_of(event: &Value) -> f64 {
    let part = |name: &str| event["timestamp"][name].as_f64().unwrap();
    part("seconds") + part("microseconds") / 1e6
}

/// A machine with both monitors.
struct Vm {
    child: Child,
    monitor: UnixStream,
    qmp: BufReader<UnixStream>,
    image: PathBuf,
}

impl Vm {
    fn qemu(image: &Path, memory: u32) -> Vm {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio"]);
        command.arg("-drive").arg(format!("file={},format=qcow2,if=ide,id=hda", image.display()));
        Vm::start(command, image, memory)
    }

    fn cowvm(image: &Path, memory: u32) -> Vm {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowvm"));
        command.arg("run").arg("-hda").arg(image);
        Vm::start(command, image, memory)
    }

    /// Waits until the guest has filled its memory.
    fn start(mut command: Command, image: &Path, memory: u32) -> Vm {
        command.args(["-m", &memory.to_string()]);
        let sockets = ["monitor", "qmp"].map(|kind| image.with_extension(kind));
        for (kind, socket) in ["-monitor", "-qmp"].iter().zip(&sockets) {
            command.args([*kind, &format!("unix:{},server=on,wait=off", socket.display())]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut console = child.stdout.take().unwrap();
        let mut byte = [0];
        while byte != *b"!" {
            console.read_exact(&mut byte).unwrap();
        }
        let [monitor, qmp] = sockets.map(|socket| connect(&socket));
        let mut vm = Vm { child, monitor, qmp: BufReader::new(qmp), image: image.to_owned() };
        vm.until_prompt();
        vm.receive();
        vm.ask("qmp_capabilities");
        vm
    }

    /// Seconds that a command takes, which must have nothing to say, and for which it stops the guest.
    fn time(&mut self, line: &str) -> (f64, Option<f64>) {
        let start = Instant::now();
        self.monitor.write_all(format!("{line}\n").as_bytes()).unwrap();
        let answer = self.until_prompt();
        let seconds = start.elapsed().as_secs_f64();
        assert!(!answer.contains("Error"), "{line}: {answer}");
        let events = self.ask("query-status");
        let at = |name: &str| events.iter().find(|event| event["event"] == name).map(seconds_of);
        (seconds, at("STOP").zip(at("RESUME")).map(|(stop, resume)| resume - stop))
    }

    /// Has QMP do something; the events before the answer.
    fn ask(&mut self, command: &str) -> Vec<Value> {
        writeln!(self.qmp.get_mut(), "{{\"execute\":\"{command}\"}}").unwrap();
        let mut events = Vec::new();
        loop {
            let value = self.receive();
            match value.get("return") {
                Some(_) => return events,
                None => events.push(value),
            }
        }
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn until_prompt(&mut self) -> String {
        let (mut text, mut bytes) = (Vec::new(), [0; 4096]);
        while !text.ends_with(b"(qemu) ") {
            let count = self.monitor.read(&mut bytes).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&text));
            text.extend(&bytes[..count]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Ends it, and looks at its disk.
    fn quit(mut self) {
        self.monitor.write_all(b"quit\n").unwrap();
        assert!(self.child.wait().unwrap().success());
        let check = Command::new("qemu-img").args(["check", "-q"]).arg(&self.image).status().unwrap();
        assert!(check.success());
    }
}
