//! Reading compressed clusters: raw deflate (RFC 1951), never more than a cluster of it.

use super::driver::Qcow2;
use super::entries::Compressed;
use crate::block::{Error, Iov, Kind, Result};
use flate2::{Decompress, FlushDecompress};

/// Clusters up to this size are inflated at once: handing them to a thread takes longer.
const INLINE: usize = 16 << 10;

impl Qcow2 {
    /// Reads from byte `skip` of a compressed cluster on.
    pub(super) async fn read_compressed(&self, data: Compressed, skip: usize, into: &Iov) -> Result<()> {
        let packed = self.file.read_bytes(data.offset.0, data.len as usize).await?;
        let size = self.geometry.cluster_size() as usize;
        let cluster = if size <= INLINE {
            inflate(&packed, size)
        } else {
            self.engine.offload(move || inflate(&packed, size)).await
        };
        let cluster = cluster.ok_or_else(|| {
            let message = format!("compressed cluster at offset {:#x} cannot be decompressed", data.offset.0);
            Error::new(Kind::Io, message)
        })?;
        into.copy_from(0, &cluster[skip..]);
        Ok(())
    }
}

/// Inflates exactly `size` bytes. What follows them in `packed` is another cluster's.
fn inflate(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; size];
    let mut state = Decompress::new(false);
    // One call with all input and all room either fills the cluster or never will.
    state.decompress(packed, &mut out, FlushDecompress::Finish).ok()?;
    (state.total_out() == size as u64).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; bytes.len() + 1024];
        let mut state = Compress::new(Compression::best(), false);
        state.compress(bytes, &mut out, FlushCompress::Finish).unwrap();
        out.truncate(state.total_out() as usize);
        out
    }

    #[test]
    fn a_cluster_is_inflated_whatever_follows_it() {
        let bytes: Vec<u8> = (0..65536u32).map(|i| (i / 7) as u8).collect();
        let mut packed = deflate(&bytes);
        packed.extend([0xa5; 700]);
        assert_eq!(inflate(&packed, bytes.len()).as_deref(), Some(&bytes[..]));
    }

    #[test]
    fn streams_that_do_not_fill_the_cluster_or_are_broken_are_refused_and_bombs_are_cut() {
        let packed = deflate(&[0; 4096]);
        assert_eq!(inflate(&packed, 65536), None);
        assert_eq!(inflate(&packed[..packed.len() / 2], 4096), None);
        assert_eq!(inflate(&[0xff; 100], 512), None);
        let bomb = deflate(&vec![0; 8 << 20]);
        assert_eq!(inflate(&bomb, 512).map(|out| out.len()), Some(512));
    }
}
