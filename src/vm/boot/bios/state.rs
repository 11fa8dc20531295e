//! The BIOS in a VM state: the little that it remembers outside of the guest's memory.

use super::Bios;
use super::video::{COLUMNS, ROWS, Screen};
use crate::vmstate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The longest delay that the guest can ask for, in nanoseconds: 2^32 microseconds.
const MAX_DELAY: u64 = 1000 << 32;

/// What the BIOS remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiosV1 {
    /// Row and column of the terminal's cursor.
    cursor: (u8, u8),
    /// What is left of a delay, in nanoseconds.
    delay_nsec: Option<u64>,
}

impl BiosV1 {
    /// Whether the BIOS could be in this state.
    ///
    /// # Errors
    /// When it could not.
    pub fn check(&self) -> Result<()> {
        let (row, column) = self.cursor;
        let delay = self.delay_nsec.unwrap_or(0);
        match row <= ROWS && column <= COLUMNS && delay <= MAX_DELAY {
            true => Ok(()),
            false => Err(Error::damaged("the BIOS is in an impossible state")),
        }
    }
}

impl Bios {
    /// Its state.
    pub fn save(&self) -> BiosV1 {
        let left = |end: Instant| end.saturating_duration_since(Instant::now()).as_nanos();
        BiosV1 {
            cursor: (self.screen.row, self.screen.column),
            delay_nsec: self.delay_end.map(|end| u64::try_from(left(end)).unwrap_or(MAX_DELAY)),
        }
    }

    /// Takes up a state that was [checked](BiosV1::check).
    pub fn load_state(&mut self, state: &BiosV1) {
        let (row, column) = state.cursor;
        self.screen = Screen { row, column };
        self.delay_end = state.delay_nsec.map(|nsec| Instant::now() + Duration::from_nanos(nsec));
    }
}
