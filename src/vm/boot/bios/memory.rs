//! INT 15h: how much memory there is and where, the A20 gate, the configuration table.

use super::Bios;
use super::bda;
use super::frame::Frame;
use super::image;
use crate::vm::layout::{EBDA_START, HIGH_RAM_START, Region, RegionKind};

/// "SMAP".
const SIGNATURE: u32 = 0x534d_4150;
/// Bytes of a line of the memory map: base, length, kind.
const LINE: u32 = 20;
const MIB: u64 = 1 << 20;

impl Bios {
    /// The functions of INT 15h that describe the machine.
    pub(super) fn memory(&mut self, frame: &mut Frame) {
        let served = match frame.ax() {
            0xe820 => self.memory_map(frame),
            0xe801 => self.memory_sizes(frame),
            0x2400..=0x2403 => address_line_20(frame),
            ax => match ax >> 8 {
                0x88 => self.extended_memory(frame),
                0xc0 => configuration(frame),
                0xc1 => self.ebda(frame),
                _ => false,
            },
        };
        frame.set_carry(!served);
        if !served {
            // Function not supported.
            frame.set_ah(0x86);
        }
    }

    /// E820: line EBX of the map to ES:DI; the next line's number in EBX, 0 after the last.
    fn memory_map(&self, frame: &mut Frame) -> bool {
        if frame.edx() != SIGNATURE || frame.ecx() < LINE {
            return false;
        }
        let index = frame.ebx() as usize;
        let Some(region) = self.map.get(index) else { return false };
        if !self.ram.write(frame.es(frame.di()), &line(region)) {
            return false;
        }
        let more = index + 1 < self.map.len();
        frame.set_eax(SIGNATURE);
        frame.set_ebx(if more { frame.ebx() + 1 } else { 0 });
        frame.set_ecx(LINE);
        true
    }

    /// E801: KiB between 1 and 16 MiB in AX and CX, blocks of 64 KiB above in BX and DX.
    fn memory_sizes(&self, frame: &mut Frame) -> bool {
        let above = self.bytes_above_1_mib();
        let low = (above.min(15 * MIB) >> 10) as u16;
        let high = u16::try_from(above.saturating_sub(15 * MIB) >> 16).unwrap_or(u16::MAX);
        frame.set_ax(low);
        frame.set_cx(low);
        frame.set_bx(high);
        frame.set_dx(high);
        true
    }

    /// 88h: KiB above 1 MiB, at most the 63 MiB that its callers can bear.
    fn extended_memory(&self, frame: &mut Frame) -> bool {
        frame.set_ax((self.bytes_above_1_mib().min(63 * MIB) >> 10) as u16);
        true
    }

    /// RAM that begins at 1 MiB, up to the first hole.
    fn bytes_above_1_mib(&self) -> u64 {
        let region =
            self.map.iter().find(|line| line.start == HIGH_RAM_START && line.kind == RegionKind::Ram);
        region.map_or(0, |region| region.len)
    }

    /// C1h: the segment of the EBDA.
    fn ebda(&self, frame: &mut Frame) -> bool {
        frame.set_es(self.ram.u16(bda::EBDA_SEGMENT));
        self.ram.contains(EBDA_START, 1)
    }
}

fn line(region: &Region) -> [u8; LINE as usize] {
    let mut line = [0; LINE as usize];
    line[0..8].copy_from_slice(&region.start.to_le_bytes());
    line[8..16].copy_from_slice(&region.len.to_le_bytes());
    line[16..20].copy_from_slice(&(region.kind as u32).to_le_bytes());
    line
}

/// 2400h to 2403h: address line 20 is always on.
fn address_line_20(frame: &mut Frame) -> bool {
    match frame.al() {
        0 => return false,
        2 => frame.set_al(1),
        // The keyboard controller and port 92h are accepted, too.
        3 => frame.set_bx(3),
        _ => {}
    }
    frame.set_ah(0);
    true
}

/// C0h: the table in the image.
fn configuration(frame: &mut Frame) -> bool {
    frame.set_es_bx(image::SEGMENT, image::CONFIGURATION);
    frame.set_ah(0);
    true
}
