//! The keyboard controller, of which only the reset line is left: the command FEh pulses it.

use crate::devices::bus::BusDevice;
use crate::devices::legacy::PowerControl;
use std::convert::Infallible;
use std::sync::Arc;
use vm_superio::{I8042Device, Trigger};

/// The data port; the command and status port is four above it.
pub const BASE: u64 = 0x60;
/// Number of ports, those between included.
pub const PORTS: u64 = 5;

/// The controller.
pub struct I8042(I8042Device<ResetLine>);

struct ResetLine(Arc<dyn PowerControl>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.reset();
        Ok(())
    }
}

impl I8042 {
    /// A controller whose reset line goes to `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> I8042 {
        I8042(I8042Device::new(ResetLine(power)))
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [value] = data {
            *value = self.0.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let &[value] = data {
            let Ok(()) = self.0.write(offset as u8, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl PowerControl for Count {
        fn reset(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn power_off(&self) {}
    }

    #[test]
    fn only_the_reset_command_resets() {
        let power = Arc::new(Count::default());
        let mut controller = I8042::new(power.clone());
        controller.write(4, &[0xd1]);
        controller.write(0, &[0xfe]);
        controller.write(4, &[0xfe, 0xfe]);
        assert_eq!(power.0.load(Ordering::SeqCst), 0);
        controller.write(4, &[0xfe]);
        assert_eq!(power.0.load(Ordering::SeqCst), 1);
    }
}
