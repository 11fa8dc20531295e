//! What a format whose images stand over backing files can do about that.

use super::Node;
use crate::block::Result;
use async_trait::async_trait;
use std::rc::Rc;

/// A backing file as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// The file, relative to the image's folder.
    pub file: String,
    /// Its format; without it, whoever opens the image guesses.
    pub format: Option<String>,
}

/// A format whose images hold what differs from a backing file. All of this belongs to the control path: no request
/// is in flight, and the image is the old or the new one whenever the process dies.
#[async_trait(?Send)]
pub trait Overlay {
    /// Names another backing file in the image, or none. All that was written before is durable first, the name on
    /// return. It is the caller's business that the disk shows the same over the new one.
    ///
    /// Afterwards the node is read-only: it reads through the old backing file until it is opened again.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) for names that the format cannot hold;
    /// [`Kind::NoSpace`](crate::block::Kind::NoSpace) where the header has no room.
    async fn change_backing(&self, backing: Option<&BackingName>) -> Result<()>;

    /// Reads what this layer does not have from another node, which shows the same: the backing file, opened again.
    fn set_backing(&self, backing: Rc<Node>);

    /// Gives up all that this layer has, so that the disk shows what the backing file has; internal snapshots and
    /// bitmaps stay. Durable on return.
    ///
    /// # Errors
    /// What the host says.
    async fn make_empty(&self) -> Result<()>;
}
