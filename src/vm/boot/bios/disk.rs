//! INT 13h: the drives 80h, 81h, … by cylinder, head and sector, and by the extensions' block numbers
//! (Enhanced Disk Drive Specification 1.1).
//!
//! Invariant: a transfer is checked as a whole, disk range and guest memory, before it starts. So a failed
//! call has moved nothing, unless the host's file failed.

use super::Bios;
use super::bda;
use super::frame::Frame;
use super::ram::Ram;
use crate::block::drive::{Action, Drive, Operation};
use crate::block::{self, Buffer, Kind};
use std::sync::Arc;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Sectors a call may move.
const MAX_SECTORS: u16 = 128;
/// The number of the first hard disk.
const FIRST_DRIVE: u8 = 0x80;

/// What INT 13h needs of a drive.
pub trait Disk: Send + Sync {
    /// The name that users know it by ("hda").
    fn id(&self) -> &str;
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Reads `len` bytes.
    ///
    /// # Errors
    /// As the block layer says.
    fn read(&self, offset: u64, len: usize) -> block::Result<Vec<u8>>;
    /// Writes `bytes`.
    ///
    /// # Errors
    /// As the block layer says.
    fn write(&self, offset: u64, bytes: Vec<u8>) -> block::Result<()>;
    /// Makes what was written durable.
    ///
    /// # Errors
    /// As the block layer says.
    fn flush(&self) -> block::Result<()>;
    /// What is to be done about a request that failed.
    fn judge(&self, _operation: Operation, _error: &block::Error) -> Action {
        Action::Report
    }
}

impl Disk for Drive {
    fn id(&self) -> &str {
        Drive::id(self)
    }

    fn size(&self) -> u64 {
        Drive::size(self)
    }

    fn read_only(&self) -> bool {
        Drive::read_only(self)
    }

    fn read(&self, offset: u64, len: usize) -> block::Result<Vec<u8>> {
        self.call(move |local| async move {
            let into = Buffer::new(len).iov(len);
            local.read(offset, &into).await.map(|()| into.to_vec())
        })?
    }

    fn write(&self, offset: u64, bytes: Vec<u8>) -> block::Result<()> {
        self.call(move |local| async move {
            let from = Buffer::from_bytes(&bytes).iov(bytes.len());
            local.write(offset, &from).await
        })?
    }

    fn flush(&self) -> block::Result<()> {
        self.call(|local| async move { local.flush().await })?
    }

    fn judge(&self, operation: Operation, error: &block::Error) -> Action {
        Drive::judge(self, operation, error)
    }
}

/// The error codes of INT 13h, as in AH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    /// Function, drive or parameter that does not exist.
    Invalid = 0x01,
    WriteProtected = 0x03,
    /// The sector is not on the disk.
    SectorNotFound = 0x04,
    /// The buffer is not memory.
    BadBuffer = 0x09,
    ReadFault = 0x10,
    WriteFault = 0xcc,
}

/// How a call ends other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The guest is told.
    Status(Status),
    /// The guest is being stopped, and calls again when it goes on.
    Again,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Status(status)
    }
}

type Outcome<T = ()> = Result<T, Failure>;

/// What a transfer does with its sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
    Verify,
}

/// A run of sectors and the memory that goes with it.
struct Transfer {
    lba: u64,
    sectors: u16,
    buffer: u64,
}

/// The geometry that cylinder, head and sector addresses count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    cylinders: u16,
    heads: u8,
    sectors: u8,
}

impl Geometry {
    /// LBA assist: 63 sectors, and as few heads as keep the cylinders within the 1024 that registers can
    /// name.
    fn of(sectors: u64) -> Geometry {
        let heads = [16u8, 32, 64, 128].into_iter().find(|&heads| sectors <= u64::from(heads) * 63 * 1024);
        let heads = heads.unwrap_or(255);
        let cylinders = (sectors / (u64::from(heads) * 63)).clamp(1, 1024);
        Geometry { cylinders: cylinders as u16, heads, sectors: 63 }
    }

    /// The block number of cylinder, head and sector in CX and DH.
    fn lba(self, cx: u16, head: u8) -> Option<u64> {
        let (cylinder, sector) = ((cx >> 8) | (cx & 0xc0) << 2, cx & 0x3f);
        if sector == 0 || head >= self.heads {
            return None;
        }
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        Some(track * u64::from(self.sectors) + u64::from(sector) - 1)
    }
}

/// A disk address packet, as far as it is used.
///
/// ```text
///   0 size, 1 reserved, 2 word blocks, 4 far pointer to the buffer, 8 quadword block number
///   16 quadword flat address, used when the pointer is FFFF:FFFF and the size at least 24
/// ```
struct Packet {
    address: u64,
    transfer: Transfer,
}

impl Packet {
    fn read(ram: &Ram, address: u64) -> Outcome<Packet> {
        let size = ram.u8(address);
        if size < 16 || !ram.contains(address, usize::from(size)) {
            return Err(Status::Invalid.into());
        }
        let quadword =
            |at: u64| u64::from(ram.u32(address + at)) | u64::from(ram.u32(address + at + 4)) << 32;
        let pointer = ram.u32(address + 4);
        let buffer = match (pointer, size) {
            (u32::MAX, 24..) => quadword(16),
            _ => u64::from(pointer >> 16) * 16 + u64::from(pointer & 0xffff),
        };
        let transfer = Transfer { lba: quadword(8), sectors: ram.u16(address + 2), buffer };
        Ok(Packet { address, transfer })
    }

    /// Tells the guest how many blocks were moved.
    fn set_blocks(&self, ram: &Ram, blocks: u16) {
        ram.set_u16(self.address + 2, blocks);
    }
}

impl Bios {
    /// INT 13h.
    pub(super) fn disk(&mut self, frame: &mut Frame) {
        match frame.ah() {
            0x01 => return self.last_status(frame),
            0x15 => return self.drive_type(frame),
            _ => {}
        }
        let called = frame.clone();
        let status = match self.disk_function(frame) {
            Err(Failure::Again) => {
                *frame = called;
                return frame.call_again(|_| ());
            }
            Err(Failure::Status(status)) => Err(status as u8),
            Ok(ah) => Ok(ah),
        };
        self.finish(frame, status);
    }

    fn finish(&self, frame: &mut Frame, outcome: Result<u8, u8>) {
        let status = outcome.err().unwrap_or(0);
        self.ram.set_u8(bda::DISK_STATUS, status);
        frame.set_ah(outcome.unwrap_or(status));
        frame.set_carry(outcome.is_err());
    }

    /// The functions that end with a status; when they succeed they say what AH is.
    fn disk_function(&mut self, frame: &mut Frame) -> Outcome<u8> {
        let disk = self.disk_of(frame.dl())?.clone();
        match frame.ah() {
            // Reset: also what a careful guest does before it stops, so the image is made durable.
            0x00 | 0x0d => {
                let done = disk.flush();
                judged(&*disk, Operation::Flush, done, Status::WriteFault)?;
            }
            0x02 => self.by_sector(&*disk, frame, Direction::Read)?,
            0x03 => self.by_sector(&*disk, frame, Direction::Write)?,
            0x04 => self.by_sector(&*disk, frame, Direction::Verify)?,
            0x08 => self.parameters(&*disk, frame),
            // Set parameters, seek, test ready, recalibrate, diagnose: nothing to do on a drive that is ready.
            0x09 | 0x0c | 0x10 | 0x11 | 0x14 | 0x47 => {}
            0x41 => return extensions(frame),
            0x42 => self.by_packet(&*disk, frame, Direction::Read)?,
            0x43 => self.by_packet(&*disk, frame, Direction::Write)?,
            0x44 => self.by_packet(&*disk, frame, Direction::Verify)?,
            0x48 => self.extended_parameters(&*disk, frame)?,
            _ => return Err(Status::Invalid.into()),
        }
        Ok(0)
    }

    fn disk_of(&self, number: u8) -> Result<&Arc<dyn Disk>, Status> {
        let index = number.checked_sub(FIRST_DRIVE).ok_or(Status::Invalid)?;
        self.disks.get(usize::from(index)).ok_or(Status::Invalid)
    }

    /// 01h: the status of the last call stays what it is.
    fn last_status(&self, frame: &mut Frame) {
        let status = self.ram.u8(bda::DISK_STATUS);
        frame.set_ah(status);
        frame.set_carry(status != 0);
    }

    /// 15h: AH is 3 for a hard disk, with its sectors in CX:DX, and 0 for no drive.
    fn drive_type(&self, frame: &mut Frame) {
        frame.set_carry(false);
        match self.disk_of(frame.dl()) {
            Ok(disk) => {
                let sectors = u32::try_from(disk.size() / SECTOR).unwrap_or(u32::MAX);
                frame.set_ah(3);
                frame.set_cx((sectors >> 16) as u16);
                frame.set_dx(sectors as u16);
            }
            Err(_) => frame.set_ah(0),
        }
    }

    /// 08h: the last cylinder, head and sector, and how many drives there are.
    fn parameters(&self, disk: &dyn Disk, frame: &mut Frame) {
        let geometry = Geometry::of(disk.size() / SECTOR);
        let last = geometry.cylinders - 1;
        frame.set_cx((last & 0xff) << 8 | (last >> 8) << 6 | u16::from(geometry.sectors));
        frame.set_dh(geometry.heads - 1);
        frame.set_dl(self.ram.u8(bda::DISK_COUNT));
        frame.set_al(0);
    }

    /// 02h to 04h: AL sectors at CX, DH; the buffer is ES:BX and may go on past the end of the segment.
    fn by_sector(&self, disk: &dyn Disk, frame: &mut Frame, direction: Direction) -> Outcome {
        let sectors = u16::from(frame.al());
        frame.set_al(0);
        let geometry = Geometry::of(disk.size() / SECTOR);
        let lba = geometry.lba(frame.cx(), frame.dh()).ok_or(Status::Invalid)?;
        if sectors == 0 {
            return Err(Status::Invalid.into());
        }
        self.transfer(disk, &Transfer { lba, sectors, buffer: frame.es(frame.bx()) }, direction)?;
        frame.set_al(sectors as u8);
        Ok(())
    }

    /// 42h to 44h: what the packet at DS:SI says.
    fn by_packet(&self, disk: &dyn Disk, frame: &Frame, direction: Direction) -> Outcome {
        let packet = Packet::read(&self.ram, frame.ds(frame.si()))?;
        let outcome = self.transfer(disk, &packet.transfer, direction);
        if matches!(outcome, Err(Failure::Status(_))) {
            packet.set_blocks(&self.ram, 0);
        }
        outcome
    }

    fn transfer(&self, disk: &dyn Disk, transfer: &Transfer, direction: Direction) -> Outcome {
        let &Transfer { lba, sectors, buffer } = transfer;
        if sectors > MAX_SECTORS {
            return Err(Status::Invalid.into());
        }
        let end = lba.checked_add(u64::from(sectors)).ok_or(Status::SectorNotFound)?;
        if end > disk.size() / SECTOR {
            return Err(Status::SectorNotFound.into());
        }
        let (offset, len) = (lba * SECTOR, usize::from(sectors) * SECTOR as usize);
        if direction != Direction::Verify && !self.ram.contains(buffer, len) {
            return Err(Status::BadBuffer.into());
        }
        match direction {
            Direction::Write => self.write_sectors(disk, offset, buffer, len),
            Direction::Read => {
                let read = disk.read(offset, len);
                match judged(disk, Operation::Read, read, Status::ReadFault)? {
                    Some(bytes) if !self.ram.write(buffer, &bytes) => Err(Status::BadBuffer.into()),
                    _ => Ok(()),
                }
            }
            Direction::Verify => {
                let read = disk.read(offset, len);
                judged(disk, Operation::Read, read, Status::ReadFault).map(drop)
            }
        }
    }

    fn write_sectors(&self, disk: &dyn Disk, offset: u64, buffer: u64, len: usize) -> Outcome {
        if disk.read_only() {
            return Err(Status::WriteProtected.into());
        }
        let bytes = self.ram.read(buffer, len).ok_or(Status::BadBuffer)?;
        let written = disk.write(offset, bytes);
        let status = match &written {
            Err(error) if error.kind() == Kind::ReadOnly => Status::WriteProtected,
            _ => Status::WriteFault,
        };
        judged(disk, Operation::Write, written, status).map(drop)
    }

    /// 48h: the parameter table at DS:SI, 26 bytes or, where the guest has room, 30.
    fn extended_parameters(&self, disk: &dyn Disk, frame: &Frame) -> Outcome {
        let address = frame.ds(frame.si());
        let len: u16 = match self.ram.u16(address) {
            0..26 => return Err(Status::Invalid.into()),
            26..30 => 26,
            _ => 30,
        };
        let table = parameter_table(disk.size() / SECTOR, len);
        match self.ram.write(address, &table[..usize::from(len)]) {
            true => Ok(()),
            false => Err(Status::BadBuffer.into()),
        }
    }
}

/// The result of a request, as the drive's policy has it: `None` where a failure is ignored, `status` where the guest
/// is told.
fn judged<T>(
    disk: &dyn Disk,
    operation: Operation,
    result: block::Result<T>,
    status: Status,
) -> Outcome<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match disk.judge(operation, &error) {
            Action::Report => Err(status.into()),
            Action::Ignore => Ok(None),
            Action::Stop => Err(Failure::Again),
        },
    }
}

/// 41h: version 2.1, which is EDD 1.1, with disk access by packet and drive parameters.
fn extensions(frame: &mut Frame) -> Outcome<u8> {
    if frame.bx() != 0x55aa {
        return Err(Status::Invalid.into());
    }
    frame.set_bx(0xaa55);
    frame.set_cx(1 << 0 | 1 << 2);
    Ok(0x21)
}

/// ```text
///   0 word size, 2 word flags, 4 cylinders, 8 heads, 12 sectors a track, 16 quadword sectors,
///   24 word bytes a sector, 26 far pointer to the device's parameters: FFFF:FFFF, there are none
/// ```
fn parameter_table(sectors: u64, len: u16) -> [u8; 30] {
    /// DMA boundaries do not matter; the geometry is valid.
    const FLAGS: u16 = 1 << 0 | 1 << 1;
    let geometry = Geometry::of(sectors);
    let mut table = [0xff; 30];
    table[0..2].copy_from_slice(&len.to_le_bytes());
    table[2..4].copy_from_slice(&FLAGS.to_le_bytes());
    table[4..8].copy_from_slice(&u32::from(geometry.cylinders).to_le_bytes());
    table[8..12].copy_from_slice(&u32::from(geometry.heads).to_le_bytes());
    table[12..16].copy_from_slice(&u32::from(geometry.sectors).to_le_bytes());
    table[16..24].copy_from_slice(&sectors.to_le_bytes());
    table[24..26].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    table
}
