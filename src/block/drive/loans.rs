//! Bytes of a disk that are read without a copy: pages of the host file that they stand in.

use super::stats::Moment;
use super::{Local, Operation};
use crate::block::aio::{Lender, Loan};
use crate::block::graph::driver::Place;

impl Local {
    /// As [`Local::read`], of the first bytes of a range, if as many as `least` stand in a host file as they are, together
    /// and in its page cache; `None` for all that must be read. Whoever gets the pages may see what is written to this
    /// range until he has taken them, as with a read that goes on for so long, and nothing else.
    pub async fn lend(&self, offset: u64, len: u64, least: u64, lender: &Lender) -> Option<Loan> {
        self.check_range(offset, len).ok()?;
        let _entered = self.enter().await.ok()?;
        let since = Moment::now();
        // Nothing is waited for between these two: the place could be given up.
        let place = self.root().driver().lasting_place(offset, len.min(Lender::MOST as u64))?;
        let Place { file, offset, len } = Some(place).filter(|place| place.len >= least)?;
        let loan = lender.lend(&file, offset, len as usize)?;
        self.facts.stats.count(Operation::Read, len, since, &Ok(()));
        Some(loan)
    }
}
