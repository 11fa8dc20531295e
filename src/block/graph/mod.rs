//! The graph: what a driver is ([`driver`]), what a node is ([`node`]), the one pipeline that every request
//! passes ([`io`]), and allocation status over a chain ([`status`]). What only some formats can do:
//! [`bitmaps`].

pub mod bitmaps;
pub mod driver;
pub mod io;
pub mod node;
pub mod status;

pub use driver::{BlockStatus, ChildRole, Driver, Limits};
pub use node::Node;
