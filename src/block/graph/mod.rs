//! The graph: what a driver is ([`driver`]), what a node is ([`node`]), the one pipeline that every request
//! passes ([`io`]), allocation status over a chain ([`status`]), internal snapshots ([`snapshots`]).

pub mod driver;
pub mod io;
pub mod node;
pub mod snapshots;
pub mod status;

pub use driver::{BlockStatus, ChildRole, Driver, Limits};
pub use node::Node;
