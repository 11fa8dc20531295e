//! The demo guest: the program of `firmware/demo.S` on a disk of its own.
//!
//! ```text
//!   sector 0 … 15   program, the first sector is its boot sector
//!   sector 16       how often the disk has booted
//!   sector 17 …     the user's
//! ```

use crate::block::aio::{Backend, Engine};
use crate::block::drive::Drive;
use crate::block::format::qcow2::{self, CreateOptions};
use crate::block::graph::Node;
use crate::block::options::OpenOptions;
use crate::block::protocol::file::FileDriver;
use crate::block::{Buffer, Error, Kind, Result};

core::arch::global_asm!(include_str!("../../../firmware/demo.S"), options(att_syntax));

/// Size of the disk, in bytes.
const DISK_SIZE: u64 = 16 << 20;
/// What the disk is called in its directory.
const DISK_NAME: &str = "demo.qcow2";

/// Makes a demo disk in a new directory for temporary files and returns its path. The disk is kept when the
/// machine ends: its count of boots is only worth something if it can be booted again.
///
/// # Errors
/// When the directory or the disk cannot be made; then nothing is left behind.
pub fn make_temporary_disk() -> Result<String> {
    let directory = tempfile::Builder::new()
        .prefix("cowvm-demo-")
        .tempdir()
        .map_err(|error| Error::from_io(error).context("cannot make a directory for the demo's disk"))?;
    let path = directory.path().join(DISK_NAME);
    let name = path.to_str().ok_or_else(|| {
        Error::new(Kind::InvalidArgument, "the directory for temporary files must have a name in UTF-8")
            .path(&path)
    })?;
    make_disk(name)?;
    // From here on nobody removes it.
    let _kept = directory.keep();
    Ok(name.to_owned())
}

/// What `cowvm run` says before it boots the demo from the new disk at `path`.
pub fn announcement(path: &str) -> String {
    format!(
        "No disk and no kernel are given, so this is the demo guest on a new disk.\n\
         The disk stays; to boot it again: cowvm run {path}\n"
    )
}

/// Makes a demo disk at `path`.
fn make_disk(path: &str) -> Result<()> {
    create_image(path)?;
    let options =
        OpenOptions { format: Some("qcow2".to_owned()), read_only: false, ..OpenOptions::default() };
    let drive = Drive::open("demo", path, &options)?;
    drive.call(|local| async move {
        let program = program();
        local.write(0, &Buffer::from_bytes(program).iov(program.len())).await
    })??;
    drive.close()
}

/// An empty qcow2 image.
fn create_image(path: &str) -> Result<()> {
    let engine = Engine::new(Backend::from_environment())?;
    engine.block_on(async {
        let file = FileDriver::create(&engine, path, &OpenOptions::default())?;
        let node = Node::new(path, Box::new(file));
        let options = CreateOptions { size: DISK_SIZE, ..CreateOptions::default() };
        qcow2::create(&engine, &node, None, &options).await?;
        node.close().await
    })?
}

/// The program: what the first sectors of the disk hold.
pub fn program() -> &'static [u8] {
    unsafe extern "C" {
        static cowvm_demo_start: u8;
        static cowvm_demo_end: u8;
    }
    let (start, end) = (&raw const cowvm_demo_start, &raw const cowvm_demo_end);
    // SAFETY: firmware/demo.S defines both labels in one section of constant data, the end after the start.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::boot::harness::{Ended, MEMORY, Machine, MemoryDisk};
    use crate::vm::layout::{Layout, Region, RegionKind};
    use std::sync::Arc;

    /// A disk in memory with the program on it.
    fn disk(sectors: usize) -> Arc<MemoryDisk> {
        let mut bytes = program().to_vec();
        bytes.resize(sectors * 512, 0);
        MemoryDisk::new(bytes)
    }

    /// Types `commands`, the last of which must end the guest, and returns what the guest showed.
    fn session(disk: &Arc<MemoryDisk>, commands: &str) -> (Ended, String) {
        let mut machine = Machine::new(vec![disk.clone()]);
        machine.console.push_input(commands.as_bytes());
        let ended = machine.run();
        (ended, machine.output())
    }

    #[test]
    fn boots_are_counted_on_the_disk() {
        let disk = disk(64);
        for boot in 1..=3 {
            let (ended, output) = session(&disk, "poweroff\n");
            assert_eq!(ended, Ended::PowerOff);
            assert!(output.contains(&format!("This is boot {boot} of this disk.\r\n")), "{output}");
            assert!(output.contains("Ctrl-A C") && output.ends_with("cow> poweroff\r\n"), "{output}");
        }
        let bytes = disk.bytes.lock().unwrap();
        assert_eq!(&bytes[16 * 512..16 * 512 + 20], b"cowvm demo boots\x03\0\0\0");
        assert_eq!(&bytes[..16 * 512], program());
    }

    /// What the guest showed between the echo of `command` and the next prompt.
    fn answer(disk: &Arc<MemoryDisk>, command: &str) -> String {
        let (ended, output) = session(disk, &format!("{command}\npoweroff\n"));
        assert_eq!(ended, Ended::PowerOff);
        output.split("\r\ncow> ").nth(1).expect(&output).replace("\r\n", "\n")
    }

    #[test]
    fn what_is_written_is_on_the_disk_and_is_read_back() {
        let disk = disk(64);
        assert_eq!(answer(&disk, "write 0x14 Hello,  disk"), "write 0x14 Hello,  disk\nWritten.\n");
        let mut expect = b"Hello,  disk".to_vec();
        expect.resize(512, 0);
        assert_eq!(disk.bytes.lock().unwrap()[20 * 512..21 * 512], expect);
        assert_eq!(
            answer(&disk, "  read  20 "),
            "  read  20 \n\
             0000 48 65 6c 6c 6f 2c 20 20 64 69 73 6b 00 00 00 00  Hello,  disk....\n\
             0010 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................\n\
             *\n\
             01f0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................\n"
        );
        // Lines that differ are all shown.
        for (at, byte) in disk.bytes.lock().unwrap()[30 * 512..31 * 512].iter_mut().enumerate() {
            *byte = (at / 16) as u8;
        }
        assert_eq!(answer(&disk, "read 30").lines().count(), 1 + 32);
    }

    #[test]
    fn nonsense_is_answered_and_writes_nothing() {
        let disk = disk(64);
        let commands = [
            ("read 64", "there is no such sector on the disk."),
            ("read 4294967295", "there is no such sector on the disk."),
            ("read 4294967296", "Which sector? A number, decimal, or hexadecimal with 0x."),
            ("read 0xffffffff1", "Which sector? A number, decimal, or hexadecimal with 0x."),
            ("read 1x", "Which sector? A number, decimal, or hexadecimal with 0x."),
            ("read", "Which sector? A number, decimal, or hexadecimal with 0x."),
            ("write 16 x", "Sectors 0 to 16 hold the demo itself; take another."),
            ("write 17", "What shall be written? write N TEXT"),
            ("write 64 x", "there is no such sector on the disk."),
            ("rea 1", "There is no such command; help lists them."),
            ("readx 1", "There is no such command; help lists them."),
        ];
        let before = disk.bytes.lock().unwrap()[17 * 512..].to_vec();
        for (command, expect) in commands {
            assert_eq!(answer(&disk, command), format!("{command}\n{expect}\n"));
        }
        assert!(disk.bytes.lock().unwrap()[17 * 512..] == before);
        assert_eq!(&disk.bytes.lock().unwrap()[..16 * 512], program());
    }

    #[test]
    fn the_line_can_be_edited_and_is_bounded() {
        let disk = disk(64);
        let erased = "\x08 \x08";
        assert_eq!(
            answer(&disk, "\x7fbx\x7foots").replace(erased, "<"),
            "bx<oots\nThis is boot 1 of this disk.\n"
        );
        let shown = answer(&disk, "xy\x15boots").replace(erased, "<");
        assert_eq!(shown, "xy<<boots\nThis is boot 2 of this disk.\n");
        let long = answer(&disk, &"z".repeat(300));
        assert_eq!(long.matches('z').count(), 100);
        assert!(long.ends_with("There is no such command; help lists them.\n"));
    }

    #[test]
    fn memory_and_time_are_shown() {
        let disk = disk(64);
        let mut expect = "mem\n".to_owned();
        for Region { start, len, kind } in Layout::new(MEMORY, 36).unwrap().e820() {
            let kind = if kind == RegionKind::Ram { "memory" } else { "reserved" };
            expect += &format!("{start:016x}-{:016x}  {kind}\n", start + len - 1);
        }
        assert_eq!(answer(&disk, "mem"), expect);
        let time = answer(&disk, "time");
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "time\n9999-99-99 99:99:99 UTC\n");
        let help = answer(&disk, "help");
        for command in ["help", "read", "write", "mem", "time", "boots", "poweroff", "reboot"] {
            assert!(help.contains(&format!("\n{command} ")), "{help}");
        }
        assert!(help.lines().all(|line| line.len() < 80));
    }

    #[test]
    fn reboot_pulls_the_reset_line() {
        assert_eq!(session(&disk(64), "reboot\n").0, Ended::Reset);
    }

    #[test]
    fn a_read_only_disk_boots_uncounted() {
        let disk =
            Arc::new(MemoryDisk { bytes: disk(64).bytes.lock().unwrap().clone().into(), read_only: true });
        let (_, output) = session(&disk, "poweroff\n");
        assert!(output.contains("This boot is not counted: the disk is read-only.\r\n"), "{output}");
    }

    /// A child that another test of this process is starting holds all our locks from its fork to its exec.
    fn open_unlocked(path: &str, options: &OpenOptions) -> Arc<Drive> {
        for _ in 0..1000 {
            match Drive::open("hda", path, options) {
                Err(error) if error.kind() == Kind::Locked => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                other => return other.unwrap(),
            }
        }
        panic!("{path} stays locked");
    }

    #[test]
    fn a_new_qcow2_disk_boots_and_counts_from_run_to_run() {
        let path = make_temporary_disk().unwrap();
        let removed = tempfile::TempPath::try_from_path(&path).unwrap();
        for boot in 1..=2 {
            let options = OpenOptions { read_only: false, ..OpenOptions::default() };
            let drive = open_unlocked(&path, &options);
            assert_eq!((drive.format(), drive.size()), ("qcow2", DISK_SIZE));
            let mut machine = Machine::with_disks(vec![drive.clone()]);
            machine.console.push_input(b"poweroff\n");
            assert_eq!(machine.run(), Ended::PowerOff);
            assert!(machine.output().contains(&format!("This is boot {boot} of this disk.\r\n")));
            drop(machine);
            drive.close().unwrap();
        }
        drop(removed);
        std::fs::remove_dir(std::path::Path::new(&path).parent().unwrap()).unwrap();
    }
}
