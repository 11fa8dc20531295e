//! The graph: what a driver is ([`driver`]), what a node is ([`node`]), the one pipeline that every request
//! passes ([`io`]), allocation status over a chain ([`status`]), the moments at which tests break in
//! ([`event`]), storage that may go away ([`connection`]), and what only some formats can do ([`amend`], [`bitmaps`], [`filling`], [`overlay`], [`snapshots`]).

pub mod amend;
pub mod bitmaps;
pub mod connection;
pub mod driver;
pub mod event;
pub mod filling;
pub mod io;
pub mod node;
pub mod overlay;
pub mod snapshots;
pub mod status;

pub use connection::Connection;
pub use driver::{BlockStatus, ChildRole, Driver, Limits};
pub use event::Event;
pub use node::Node;
