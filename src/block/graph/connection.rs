//! The connection of a driver whose storage may go away, as users are told of it.

use super::{ChildRole, Node};
use std::rc::Rc;

/// Whether the storage is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It is.
    Up,
    /// It is not; requests wait for it.
    Waiting,
    /// It has not been there for too long: requests fail until it is back. The reason.
    Failing(String),
    /// It is given up: requests fail from now on. The reason.
    Dead(String),
}

impl Connection {
    /// That of the image's own storage: of the first node below `image`, backing files left aside, that has one.
    pub fn below(image: &Rc<Node>) -> Option<Connection> {
        let mut files = std::iter::successors(Some(image.clone()), |node| node.child(ChildRole::File));
        files.find_map(|node| node.driver().connection())
    }

    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Connection::Up => "up",
            Connection::Waiting => "waiting",
            Connection::Failing(_) => "failing",
            Connection::Dead(_) => "dead",
        }
    }

    /// Why requests fail.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Connection::Up | Connection::Waiting => None,
            Connection::Failing(reason) | Connection::Dead(reason) => Some(reason),
        }
    }
}
