//! The devices of the machine.
//!
//! ```text
//!   vCPU exit ──▶ bus::Bus (ports, memory) ──▶ pci::PciRoot ──▶ virtio::pci ──▶ virtio::blk ──▶ block::drive
//!                                                                    │               ▲
//!   guest's kick ── ioeventfd (events) ──────────────────────────────┼───────────────┤
//!   interrupts::MsiVector ◀── irqfd (events) ◀───────────────────────┴───────────────┘
//! ```
//!
//! The control path (configuration space, registers) comes from vCPU threads under the lock of the PCI root.
//! The data path never takes that lock: kicks and interrupts are eventfds, and a queue belongs to its drive's
//! thread while it runs.

pub mod acpi;
pub mod bus;
pub mod error;
pub mod events;
pub mod interrupts;
pub mod legacy;
pub mod pci;
pub mod virtio;

pub use error::{Error, Result};
