//! The harness: what a scenario needs around `cowvm` to boot Linux and to be looked at afterwards.

pub(crate) mod initramfs;
pub(crate) mod process;
mod processors;
pub(crate) mod session;
pub(crate) mod site;
