//! INT 19h: the boot sector of the first disk, and what is said when there is none.

use super::frame::Frame;
use super::{Bios, Disk};

/// Where a boot sector is loaded and entered.
const LOAD_ADDRESS: u64 = 0x7c00;
const SECTOR: usize = 512;

impl Bios {
    /// Loads the boot sector; the slot's code then enters it.
    pub(super) fn boot(&mut self, frame: &mut Frame) {
        let sector = match self.disks.first() {
            Some(disk) => boot_sector(&**disk),
            None => Err("there is no disk to boot from".to_owned()),
        };
        match sector {
            Ok(sector) => {
                self.ram.write(LOAD_ADDRESS, &sector);
            }
            Err(why) => self.stop(frame, &why),
        }
    }

    /// Says why nothing boots, once, and keeps the guest in the slot for ever.
    pub(super) fn stop(&mut self, frame: &mut Frame, why: &str) {
        if !frame.repeated() {
            self.console.write_stamped(format!("{why}\r\n").as_bytes());
        }
        frame.call_again(std::thread::sleep);
    }
}

/// The first sector, if it is marked as a boot sector.
fn boot_sector(disk: &dyn Disk) -> Result<Vec<u8>, String> {
    let id = disk.id();
    if disk.size() < SECTOR as u64 {
        return Err(format!("{id}: no boot sector: the disk has {} bytes", disk.size()));
    }
    let sector =
        disk.read(0, SECTOR).map_err(|error| format!("{id}: cannot read the boot sector: {error}"))?;
    match sector.get(SECTOR - 2..) {
        Some([0x55, 0xaa]) => Ok(sector),
        Some([a, b]) => Err(format!("{id}: no boot sector: sector 0 ends with {a:02x} {b:02x}, not 55 aa")),
        _ => Err(format!("{id}: cannot read the boot sector")),
    }
}
