//! The graph: what a driver is ([`driver`]), what a node is ([`node`]), the one pipeline that every request
//! passes ([`io`]), allocation status over a chain ([`status`]), and the moments at which tests break in
//! ([`event`]).

pub mod driver;
pub mod event;
pub mod io;
pub mod node;
pub mod status;

pub use driver::{BlockStatus, ChildRole, Driver, Limits};
pub use event::Event;
pub use node::Node;
