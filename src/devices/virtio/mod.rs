//! Virtio devices.

pub mod blk;
