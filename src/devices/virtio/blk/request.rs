//! A request: parsed into a checked type, carried out on the drive, answered with a status (virtio 1.2, 5.2.6).
//!
//! ```text
//!   readable   type (4) reserved (4) sector (8) │ data to write, or segments
//!   writable                     data to read   │ status (1)
//!   segment    sector (8) sectors (4) flags (4)
//! ```

use super::SERIAL_LEN;
use super::config::{F_DISCARD, F_FLUSH, F_WRITE_ZEROES, MAX_SEGMENT_SECTORS, MAX_SEGMENTS, SECTOR};
use crate::block::drive::{Local, Operation};
use crate::block::{Error, Iov, Kind};
use crate::devices::virtio::chain::Chain;
use crate::util::le;

const HEADER_LEN: usize = 16;
const SEGMENT_LEN: usize = 16;
/// Segment flag: the space may be given back.
const UNMAP: u32 = 1;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The last byte of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a queue's requests may do.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// The feature bits that the driver accepted.
    pub(super) features: u64,
    pub(super) serial: [u8; SERIAL_LEN],
    pub(super) read_only: bool,
    /// Write-zeroes may give space back.
    pub(super) may_unmap: bool,
}

impl Limits {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// A request whose form has been checked. Offsets and lengths are in bytes; whether they lie on the disk is
/// checked by the drive.
#[derive(Debug)]
pub(super) enum Request {
    Read { offset: u64, into: Iov },
    Write { offset: u64, from: Iov },
    Flush,
    GetId { into: Iov },
    Discard(Vec<Segment>),
    WriteZeroes(Vec<Segment>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    offset: u64,
    len: u64,
    unmap: bool,
}

impl Request {
    /// Reads the request that a chain with at least one writable byte holds.
    pub(super) fn parse(chain: &Chain, limits: &Limits) -> Result<Request, Status> {
        let mut header = [0; HEADER_LEN];
        if chain.readable.copy_to(0, &mut header) < HEADER_LEN {
            return Err(Status::IoError);
        }
        let (kind, sector) = (le(&header[0..4]) as u32, le(&header[8..16]));
        let output = chain.readable.slice(HEADER_LEN, chain.readable.len());
        let input = chain.writable.slice(0, chain.writable.len().saturating_sub(1));
        match kind {
            T_IN => Ok(Request::Read { offset: data_offset(sector, &input)?, into: input }),
            T_OUT => {
                limits.writable()?;
                Ok(Request::Write { offset: data_offset(sector, &output)?, from: output })
            }
            T_FLUSH => Ok(Request::Flush),
            T_GET_ID => Ok(Request::GetId { into: input }),
            T_DISCARD if limits.has(F_DISCARD) => segments(&output, 0, limits).map(Request::Discard),
            T_WRITE_ZEROES if limits.has(F_WRITE_ZEROES) => {
                segments(&output, UNMAP, limits).map(Request::WriteZeroes)
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// Carries it out; says how many bytes of the chain were written, without the status.
    pub(super) async fn execute(&self, drive: &Local, limits: &Limits) -> Result<usize, Error> {
        match self {
            Request::Read { offset, into } => {
                drive.read(*offset, into).await?;
                return Ok(into.len());
            }
            Request::Write { offset, from } => drive.write(*offset, from).await?,
            Request::Flush => return drive.flush().await.map(|()| 0),
            Request::GetId { into } => return Ok(into.copy_from(0, &limits.serial)),
            Request::Discard(segments) => {
                for &Segment { offset, len, .. } in segments {
                    drive.discard(offset, len).await?;
                }
                return Ok(0);
            }
            Request::WriteZeroes(segments) => {
                for &Segment { offset, len, unmap } in segments {
                    drive.write_zeroes(offset, len, unmap && limits.may_unmap).await?;
                }
            }
        }
        // A driver that knows no flush counts on completed writes (virtio 1.2, 5.2.6.2).
        if !limits.has(F_FLUSH) {
            drive.flush().await?;
        }
        Ok(0)
    }

    /// What it wants of the disk.
    pub(super) fn operation(&self) -> Operation {
        match self {
            Request::Read { .. } | Request::GetId { .. } => Operation::Read,
            Request::Write { .. } | Request::WriteZeroes(_) => Operation::Write,
            Request::Flush => Operation::Flush,
            Request::Discard(_) => Operation::Discard,
        }
    }

    /// How many bytes of the chain it would have written, without the status.
    pub(super) fn readable_len(&self) -> usize {
        match self {
            Request::Read { into, .. } => into.len(),
            _ => 0,
        }
    }
}

impl Limits {
    fn writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }
}

fn data_offset(sector: u64, data: &Iov) -> Result<u64, Status> {
    if data.is_empty() || !(data.len() as u64).is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    sector.checked_mul(SECTOR).ok_or(Status::IoError)
}

fn segments(list: &Iov, flags: u32, limits: &Limits) -> Result<Vec<Segment>, Status> {
    limits.writable()?;
    let count = list.len() / SEGMENT_LEN;
    if count == 0 || !list.len().is_multiple_of(SEGMENT_LEN) || count > MAX_SEGMENTS as usize {
        return Err(Status::IoError);
    }
    // One copy: the guest may change its memory between two.
    list.to_vec().chunks_exact(SEGMENT_LEN).map(|segment| parse_segment(segment, flags)).collect()
}

fn parse_segment(segment: &[u8], known: u32) -> Result<Segment, Status> {
    let (sector, sectors, flags) =
        (le(&segment[..8]), le(&segment[8..12]) as u32, le(&segment[12..16]) as u32);
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > MAX_SEGMENT_SECTORS {
        return Err(Status::IoError);
    }
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    Ok(Segment { offset, len: u64::from(sectors) * SECTOR, unmap: flags & UNMAP != 0 })
}

pub(super) fn status(error: &Error) -> Status {
    match error.kind() {
        Kind::Unsupported => Status::Unsupported,
        _ => Status::IoError,
    }
}
