//! Bytes of a disk that are read without a copy: pages of the host file that they stand in.

use super::stats::Moment;
use super::{Local, Operation};
use crate::block::aio::{BulkFile, Lender, Loan};
use crate::block::graph::status::{ChainStatus, chain_status};

impl Local {
    /// As [`Local::read`], of `len` bytes ([`Lender::MOST`] at most) that stand in a host file as they are, are in its
    /// page cache, and whose place there will not be that of others; `None` for all that must be read. Whoever gets the
    /// pages may see what is written there until he has taken them, as with a read that goes on for so long.
    pub async fn lend(&self, offset: u64, len: usize, lender: &Lender) -> Option<Loan> {
        self.check_range(offset, len as u64).ok()?;
        let _entered = self.enter().await.ok()?;
        let since = Moment::now();
        let status = chain_status(&self.root(), offset, len as u64).await.ok()?;
        let (file, at) = place(&status).filter(|_| status.len == len as u64)?;
        let loan = lender.lend(&file, at, len)?;
        self.facts.stats.count(Operation::Read, len as u64, since, &Ok(()));
        Some(loan)
    }
}

/// Where bytes are that need no driver to be read, now or later.
fn place(found: &ChainStatus) -> Option<(BulkFile, u64)> {
    let (node, at) = found.status.mapped.as_ref()?;
    let fixed = found.node.driver().has_fixed_places() && !found.status.zero;
    Some((node.driver().bulk_file().filter(|_| fixed)?, *at))
}
