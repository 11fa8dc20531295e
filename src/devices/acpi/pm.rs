//! ACPI's fixed hardware (ACPI 6.5, 4.8): power-off, reset, and the power management timer.
//!
//! ```text
//!   +0  PM1a event block: status (2 bytes, write 1 to clear), enable (2 bytes)
//!   +4  PM1a control: SCI_EN, SLP_TYP, SLP_EN (2 bytes)
//!   +8  PM timer, 3.579545 MHz, 32 bits
//!   +c  reset register: writing RESET_VALUE resets (1 byte)
//! ```
//!
//! The machine is in ACPI mode from the start. The only fixed event is the power button; the SCI is up while it is
//! enabled and not acknowledged.

use crate::devices::bus::BusDevice;
use crate::devices::legacy::PowerControl;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First port of the block.
pub const BASE: u16 = 0x600;
/// Number of ports.
pub const PORTS: u16 = 16;
/// Offset of the PM1a event block.
pub const EVENT: u16 = 0;
/// Offset of the PM1a control block.
pub const CONTROL: u16 = 4;
/// Offset of the timer.
pub const TIMER: u16 = 8;
/// Offset of the reset register.
pub const RESET: u16 = 12;
/// What to write to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The system control interrupt.
pub const SCI: u8 = 9;

const ENABLE: u16 = EVENT + 2;
const TIMER_HZ: u128 = 3_579_545;
const SCI_EN: u16 = 1;
/// In status and enable: the power button (ACPI 6.5, 4.8.3.1.1).
const POWER_BUTTON: u16 = 1 << 8;
const SLP_EN: u16 = 1 << 13;

/// Sets the level of the SCI.
pub type Line = Box<dyn Fn(bool) + Send>;

/// The register block.
pub struct PowerManagement {
    power: Arc<dyn PowerControl>,
    sci: Line,
    status: u16,
    enable: u16,
    control: u16,
    /// When the timer was 0.
    since: Instant,
}

/// The block in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerManagementV1 {
    status: u16,
    enable: u16,
    control: u16,
    /// What the timer has run, in nanoseconds.
    timer_nsec: u64,
}

impl PowerManagement {
    /// A block at power-on that acts on `power` and interrupts by `sci`.
    pub fn new(power: Arc<dyn PowerControl>, sci: Line) -> PowerManagement {
        PowerManagement { power, sci, status: 0, enable: 0, control: SCI_EN, since: Instant::now() }
    }

    /// Back to power-on; the timer runs on.
    pub fn reset(&mut self) {
        (self.status, self.enable, self.control) = (0, 0, SCI_EN);
        self.update_sci();
    }

    /// Somebody presses the power button.
    pub fn press_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.update_sci();
    }

    fn update_sci(&self) {
        (self.sci)(self.status & self.enable != 0);
    }

    /// Writes of ones acknowledge.
    fn acknowledge(&mut self, bits: u16) {
        self.status &= !bits;
        self.update_sci();
    }

    fn set_enable(&mut self, value: u16) {
        self.enable = value;
        self.update_sci();
    }

    /// Its state.
    pub fn save(&self) -> PowerManagementV1 {
        let timer_nsec = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        PowerManagementV1 { status: self.status, enable: self.enable, control: self.control, timer_nsec }
    }

    /// Takes up a state; the timer runs on from there.
    pub fn load(&mut self, state: &PowerManagementV1) {
        (self.status, self.enable) = (state.status & POWER_BUTTON, state.enable);
        self.control = state.control & !SLP_EN | SCI_EN;
        self.update_sci();
        let now = Instant::now();
        self.since = now.checked_sub(Duration::from_nanos(state.timer_nsec)).unwrap_or(now);
    }

    /// The whole block as bytes, so that accesses of any width and place read what they should.
    fn image(&self) -> [u8; PORTS as usize] {
        let ticks = self.since.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000;
        let mut image = [0; PORTS as usize];
        image[usize::from(EVENT)..][..2].copy_from_slice(&self.status.to_le_bytes());
        image[usize::from(ENABLE)..][..2].copy_from_slice(&self.enable.to_le_bytes());
        image[usize::from(CONTROL)..][..2].copy_from_slice(&self.control.to_le_bytes());
        image[usize::from(TIMER)..][..4].copy_from_slice(&(ticks as u32).to_le_bytes());
        image
    }

    fn set_control(&mut self, value: u16) {
        self.control = value & !SLP_EN | SCI_EN;
        if value & SLP_EN != 0 && value >> 10 & 7 == u16::from(SLEEP_TYPE_S5) {
            self.power.power_off();
        }
    }
}

impl BusDevice for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let bytes = usize::try_from(offset).ok().and_then(|start| image.get(start..)).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset as u16, data) {
            (ENABLE, &[low, high]) => self.set_enable(u16::from_le_bytes([low, high])),
            (EVENT, &[low, high]) => self.acknowledge(u16::from_le_bytes([low, high])),
            // Status and enable at once.
            (EVENT, &[status_low, status_high, low, high]) => {
                self.acknowledge(u16::from_le_bytes([status_low, status_high]));
                self.set_enable(u16::from_le_bytes([low, high]));
            }
            (CONTROL, &[low, high, ..]) => self.set_control(u16::from_le_bytes([low, high])),
            (RESET, &[RESET_VALUE]) => self.power.reset(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<&'static str>>);

    impl PowerControl for Log {
        fn reset(&self) {
            self.0.lock().unwrap().push("reset");
        }
        fn power_off(&self) {
            self.0.lock().unwrap().push("off");
        }
    }

    fn device() -> (Arc<Log>, PowerManagement) {
        let log = Arc::new(Log::default());
        (log.clone(), PowerManagement::new(log, Box::new(|_| ())))
    }

    #[test]
    fn only_sleep_type_5_with_sleep_enable_switches_off() {
        let (log, mut pm) = device();
        for value in [5u16 << 10, SLP_EN, SLP_EN | 3 << 10] {
            pm.write(u64::from(CONTROL), &value.to_le_bytes());
        }
        assert!(log.0.lock().unwrap().is_empty());
        pm.write(u64::from(CONTROL), &(SLP_EN | 5 << 10).to_le_bytes());
        assert_eq!(*log.0.lock().unwrap(), ["off"]);
    }

    #[test]
    fn the_reset_register_resets_on_its_value_alone() {
        let (log, mut pm) = device();
        pm.write(u64::from(RESET), &[0]);
        pm.write(u64::from(RESET), &[1, 0]);
        assert!(log.0.lock().unwrap().is_empty());
        pm.write(u64::from(RESET), &[RESET_VALUE]);
        assert_eq!(*log.0.lock().unwrap(), ["reset"]);
    }

    #[test]
    fn acpi_mode_is_always_on() {
        let (_log, mut pm) = device();
        pm.write(u64::from(CONTROL), &[0, 0]);
        let mut value = [0; 2];
        pm.read(u64::from(CONTROL), &mut value);
        assert_eq!(u16::from_le_bytes(value) & SCI_EN, SCI_EN);
    }

    #[test]
    fn the_power_button_interrupts_while_it_is_enabled_and_not_acknowledged() {
        let level = Arc::new(Mutex::new(false));
        let line = level.clone();
        let mut pm =
            PowerManagement::new(Arc::new(Log::default()), Box::new(move |up| *line.lock().unwrap() = up));
        let up = || *level.lock().unwrap();
        pm.press_button();
        assert!(!up());
        pm.write(u64::from(ENABLE), &POWER_BUTTON.to_le_bytes());
        assert!(up());
        let mut status = [0; 2];
        pm.read(u64::from(EVENT), &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        pm.write(u64::from(EVENT), &[0, 0]);
        assert!(up());
        pm.write(u64::from(EVENT), &POWER_BUTTON.to_le_bytes());
        assert!(!up());
    }

    #[test]
    fn the_timer_counts_up() {
        let (_log, mut pm) = device();
        pm.since -= std::time::Duration::from_secs(1);
        let mut value = [0; 4];
        pm.read(u64::from(TIMER), &mut value);
        assert!(u128::from(u32::from_le_bytes(value)) >= TIMER_HZ);
    }

    #[test]
    fn accesses_beyond_the_block_do_nothing() {
        let (_log, mut pm) = device();
        let mut value = [0xff; 8];
        pm.read(14, &mut value);
        pm.read(u64::MAX, &mut value);
        pm.write(15, &[0; 8]);
        assert_eq!(value, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_state_moves_to_another_block_whose_timer_goes_on_from_there() {
        let (_, mut pm) = device();
        pm.write(u64::from(ENABLE), &[0x20, 0x01]);
        let state = PowerManagementV1 { timer_nsec: 1_000_000_000, ..pm.save() };
        let (_, mut other) = device();
        other.load(&state);
        let now = other.save();
        assert_eq!((now.enable, now.control), (0x120, SCI_EN));
        assert!(now.timer_nsec >= 1_000_000_000);
        let mut ticks = [0; 4];
        other.read(u64::from(TIMER), &mut ticks);
        assert!(u32::from_le_bytes(ticks) >= 3_579_545);
    }
}
