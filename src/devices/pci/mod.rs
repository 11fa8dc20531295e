//! PCI: one bus, configuration mechanism 1 and ECAM, a host bridge, devices with memory BARs and MSI-X.
//!
//! ```text
//!   0xcf8/0xcfc ─┐
//!   ECAM ────────┼──▶ PciRoot ──▶ slot 0: host bridge
//!   MMIO windows ┘               slot 1…31: PciDevice ─ ConfigSpace, BARs
//! ```

mod config;
mod msix;
mod root;

pub use config::{Bar, ConfigSpace, Identity};
pub use msix::{Msix, MsixV1};
pub use root::{PciRoot, PciState, PciWindows};

use crate::vmstate::{Result, Section};

/// A function of the PCI bus. Its BARs are 64-bit memory.
pub trait PciDevice: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, to change it.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads `data.len()` bytes of the configuration space, all of them inside one aligned dword.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes `data` to the configuration space, all of it inside one aligned dword.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// Reads registers: `offset` and length lie inside BAR `bar`.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes registers: `offset` and length lie inside BAR `bar`.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// The state after power-on, except for the addresses of the BARs, which the root sets next. On return no
    /// request of before touches guest memory any more.
    fn reset(&mut self);

    /// Stops: takes no more requests and waits for those in flight. Until [`PciDevice::resume`] the state
    /// stays as it is.
    fn pause(&mut self);

    /// Goes on after [`PciDevice::pause`].
    fn resume(&mut self);

    /// Its state, as a section of that name. It is paused.
    ///
    /// # Errors
    /// When the state is larger than a section may be.
    fn save(&self, name: &str) -> Result<Section>;

    /// Whether it could be in this state.
    ///
    /// # Errors
    /// When it could not: another device, an impossible state.
    fn check(&self, state: &Section) -> Result<()>;

    /// Takes up a state that was [checked](PciDevice::check). It is paused, and stays so.
    ///
    /// # Errors
    /// When the host refuses; the device is then to be reset.
    fn load(&mut self, state: &Section) -> Result<()>;
}
