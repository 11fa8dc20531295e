//! cowvm: a KVM virtual machine monitor whose heart is its block layer.
//!
//! Two paths run through the crate, and the folders show both:
//!
//! * **data path**: guest request → virtio queue ([`devices`]) → drive → format node → protocol node
//!   ([`block`]) → host file;
//! * **control path**: monitor, command line, `imgtool` → operations of [`block`] and [`vm`] → graph.
//!
//! Lower never imports higher: `util` ← `block`, [`vmstate`] ← `devices` ← `vm` ← `monitor` ← `cli`; [`imgtool`] and
//! [`nbd_server`] stand on `block` alone.
//!
//! # Glossary
//!
//! * **node**: one driver instance in the graph of a disk (a `qcow2` node on top of a `file` node).
//! * **child**: an edge of that graph, with a role: `file`, `backing`, `data-file`.
//! * **overlay**, **backing file**: a qcow2 image that holds only differences, and what they differ from.
//! * **drive**: a graph with the thread that runs it; what a device of the guest is attached to.
//! * **cluster**: the unit of allocation of qcow2. **L1/L2 table**: guest cluster → host cluster.
//!   **refcount**: how many users a host cluster has.

pub mod block;
pub mod cli;
pub mod devices;
pub mod imgtool;
pub mod monitor;
pub mod nbd_server;
#[cfg(test)]
#[path = "../tests/common/seed.rs"]
mod seed;
pub mod util;
pub mod vm;
pub mod vmstate;
