//! INT 15h AH=53h: as much of Advanced Power Management 1.2 as switching off takes, in real mode only.

use super::frame::Frame;
use super::{Action, Bios};

const ALL_DEVICES: u16 = 0x0001;
const STATE_OFF: u16 = 0x0003;

impl Bios {
    /// The functions of APM. A guest need not connect before it switches off.
    pub(super) fn power(&mut self, frame: &mut Frame) -> Action {
        frame.set_carry(false);
        match frame.al() {
            // Installation check: version 1.2, "PM", no 16- or 32-bit protected-mode interface.
            0x00 => {
                frame.set_ax(0x0102);
                frame.set_bx(0x504d);
                frame.set_cx(0);
            }
            // Connect in real mode, disconnect, enable.
            0x01 | 0x04 | 0x08 => frame.set_ah(0),
            // Set power state.
            0x07 if (frame.bx(), frame.cx()) == (ALL_DEVICES, STATE_OFF) => return Action::PowerOff,
            // Driver version.
            0x0e => frame.set_ax(0x0102),
            _ => {
                frame.set_carry(true);
                // Function not supported.
                frame.set_ah(0x86);
            }
        }
        Action::Continue
    }
}
