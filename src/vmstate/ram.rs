//! The table of RAM: which grains of each block are stored, and the checksum of these.
//!
//! ```text
//!   RAM    | block 0: 16 grains            | block 1 …          | the last may be shorter |
//!   entry    0 grains that are stored, a bit each (2) | 2 zeros (6) | 8 checksum (8)
//! ```
//! The checksum goes over the stored grains in their order. A block without any has zeros for an entry.

use super::{Error, Result, checksum, number};
use xxhash_rust::xxh3::Xxh3Default;

/// Bytes of a grain: what is stored, or left out when it is all zeros.
pub const GRAIN: usize = 64 << 10;
/// Bytes of a block: what has a checksum.
pub const BLOCK: u64 = 1 << 20;
/// Where the table is.
pub const TABLE_AT: u64 = 32 << 20;
/// Where RAM is.
pub const RAM_AT: u64 = 64 << 20;
/// Bytes of RAM that the table has room for.
pub const MAX_RAM: u64 = (RAM_AT - TABLE_AT) / ENTRY as u64 * BLOCK;

const ENTRY: usize = 16;
const GRAINS: usize = BLOCK as usize / GRAIN;

/// What is stored of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Bit n: grain n is stored.
    grains: u16,
    /// Of these grains.
    checksum: u64,
}

impl Block {
    /// Whether grain `index` is stored.
    pub fn has(self, index: usize) -> bool {
        self.grains >> index & 1 == 1
    }

    /// The runs of grains that are stored: the first one, and how many.
    pub fn runs(self) -> impl Iterator<Item = (usize, usize)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = (at..GRAINS).find(|&grain| self.has(grain))?;
            let end = (start..GRAINS).find(|&grain| !self.has(grain)).unwrap_or(GRAINS);
            at = end;
            Some((start, end - start))
        })
    }
}

/// Goes through the grains of a block that are stored.
#[derive(Default)]
pub struct Hasher {
    grains: u16,
    state: Xxh3Default,
}

impl Hasher {
    /// Adds grain `index` (below 16, each once, rising).
    pub fn add(&mut self, index: usize, bytes: &[u8]) {
        self.grains |= 1 << index;
        self.state.update(bytes);
    }

    /// What is stored of the block.
    pub fn finish(self) -> Block {
        match self.grains {
            0 => Block::default(),
            grains => Block { grains, checksum: self.state.digest() },
        }
    }
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// One for each block of RAM.
    pub blocks: Vec<Block>,
}

impl Table {
    /// Blocks of so much RAM, in bytes.
    pub fn blocks_of(ram: u64) -> usize {
        ram.div_ceil(BLOCK) as usize
    }

    /// Bytes of a table of so much RAM, in bytes.
    pub fn len_of(ram: u64) -> usize {
        Table::blocks_of(ram) * ENTRY
    }

    /// Bytes of grains that are stored, the last one of RAM as if it were whole.
    pub fn stored(&self) -> u64 {
        let grains: u64 = self.blocks.iter().map(|block| u64::from(block.grains.count_ones())).sum();
        grains * GRAIN as u64
    }

    /// As it stands on disk, and its checksum.
    pub fn encode(&self) -> (Vec<u8>, u64) {
        let mut bytes = Vec::with_capacity(self.blocks.len() * ENTRY);
        for block in &self.blocks {
            bytes.extend(u64::from(block.grains).to_le_bytes());
            bytes.extend(block.checksum.to_le_bytes());
        }
        let sum = checksum(&bytes);
        (bytes, sum)
    }

    /// Reads the table of so much RAM from all its bytes; `sum` is what the head says of it.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn decode(bytes: &[u8], ram: u64, sum: u64) -> Result<Table> {
        if bytes.len() != Table::len_of(ram) || checksum(bytes) != sum {
            return Err(Error::damaged("the checksum of its table of RAM does not fit it"));
        }
        let blocks = bytes.chunks_exact(ENTRY).map(decode_entry).collect::<Result<Vec<Block>>>()?;
        let grains = ram.div_ceil(GRAIN as u64) as usize;
        let outside = |(index, block): (usize, &Block)| {
            (0..GRAINS).any(|grain| block.has(grain) && index * GRAINS + grain >= grains)
        };
        match blocks.iter().enumerate().any(outside) {
            true => Err(Error::damaged("its table names RAM that is not there")),
            false => Ok(Table { blocks }),
        }
    }
}

fn decode_entry(bytes: &[u8]) -> Result<Block> {
    let block = Block { grains: number::<2>(bytes, 0) as u16, checksum: number::<8>(bytes, 8) };
    let sane = bytes[2..8].iter().all(|&byte| byte == 0) && (block.grains != 0 || block.checksum == 0);
    sane.then_some(block).ok_or_else(|| Error::damaged("its table of RAM makes no sense"))
}
