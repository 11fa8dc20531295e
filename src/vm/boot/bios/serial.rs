//! INT 14h: the first serial port, which is the console.

use super::Bios;
use super::frame::Frame;

/// Line status: transmitter empty.
const READY: u8 = 0x60;
/// Line status: a byte has been received.
const RECEIVED: u8 = 0x01;
/// Line status: timeout.
const TIMEOUT: u8 = 0x80;
/// Modem status: carrier, ready, clear to send.
const CONNECTED: u8 = 0xb0;

impl Bios {
    /// INT 14h. Speed and parity do not matter.
    pub(super) fn serial(&mut self, frame: &mut Frame) {
        if frame.dx() != 0 {
            return frame.set_ah(TIMEOUT);
        }
        match frame.ah() {
            0x00 | 0x03 => {
                frame.set_ah(self.line_status());
                frame.set_al(CONNECTED);
            }
            0x01 => {
                self.console.write_stamped(&[frame.al()]);
                frame.set_ah(READY);
            }
            0x02 => match self.console.pop_input() {
                Some(byte) => frame.set_ax(u16::from(byte)),
                None => frame.set_ah(TIMEOUT),
            },
            _ => frame.set_ah(TIMEOUT),
        }
    }

    fn line_status(&self) -> u8 {
        READY | if self.console.peek_input().is_some() { RECEIVED } else { 0 }
    }
}
