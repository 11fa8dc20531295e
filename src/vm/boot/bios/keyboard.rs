//! INT 16h: the console's bytes as keys.
//!
//! ```text
//!   console ─ bytes ─▶ decode ─ scan code, character ─▶ ring at 40:1E ─▶ INT 16h
//! ```
//!
//! The ring is the traditional one, in the guest's memory, 15 keys long; its pointers are not trusted.

use super::Bios;
use super::bda;
use super::frame::Frame;
use crate::vm::console::Console;

/// The first offset of the ring in segment 40h, and the one after the last.
const RING: std::ops::Range<u16> = 0x1e..0x3e;
const SEGMENT: u64 = 0x400;

/// Keys of an American keyboard in the order of their scan codes from 02h on, plain and with shift.
const PLAIN: &[u8] = b"1234567890-=\x08\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
const SHIFTED: &[u8] = b"!@#$%^&*()_+\x08\0QWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0\0\0 ";

impl Bios {
    /// INT 16h.
    pub(super) fn keyboard(&mut self, frame: &mut Frame) {
        self.fill_ring();
        match frame.ah() {
            0x00 | 0x10 => match self.pop_key() {
                Some(key) => frame.set_ax(key),
                None => frame.call_again(|pause| {
                    self.console.wait_input(pause);
                }),
            },
            0x01 | 0x11 => {
                let key = self.peek_key();
                frame.set_zero(key.is_none());
                frame.set_ax(key.unwrap_or(frame.ax()));
            }
            0x02 => frame.set_al(self.ram.u8(bda::SHIFT_STATE)),
            0x12 => frame.set_ax(u16::from(self.ram.u8(bda::SHIFT_STATE))),
            // Store a key; AL says whether there was room.
            0x05 => frame.set_al(u8::from(!self.push_key(frame.cx()))),
            _ => {}
        }
    }

    /// Moves a key that has been typed into an empty ring. The others stay with the console, so that what was
    /// typed ahead outlives a reset.
    fn fill_ring(&self) {
        while self.peek_key().is_none() {
            let Some(byte) = self.console.pop_input() else { return };
            if let Some(key) = decode(byte, &self.console) {
                self.push_key(key);
            }
        }
    }

    /// Head and tail; both at the start, which is an empty ring, when the guest has spoilt one.
    fn ring(&self) -> (u16, u16) {
        let (head, tail) = (self.ram.u16(bda::KEY_HEAD), self.ram.u16(bda::KEY_TAIL));
        let valid = |offset: u16| RING.contains(&offset) && offset.is_multiple_of(2);
        if valid(head) && valid(tail) { (head, tail) } else { (RING.start, RING.start) }
    }

    /// The tail and its successor, unless the ring is full.
    fn free_slot(&self) -> Option<(u16, u16)> {
        let (head, tail) = self.ring();
        let next = successor(tail);
        (next != head).then_some((tail, next))
    }

    fn push_key(&self, key: u16) -> bool {
        let Some((tail, next)) = self.free_slot() else { return false };
        self.ram.set_u16(SEGMENT + u64::from(tail), key);
        self.ram.set_u16(bda::KEY_HEAD, self.ring().0);
        self.ram.set_u16(bda::KEY_TAIL, next);
        true
    }

    fn peek_key(&self) -> Option<u16> {
        let (head, tail) = self.ring();
        (head != tail).then(|| self.ram.u16(SEGMENT + u64::from(head)))
    }

    fn pop_key(&self) -> Option<u16> {
        let key = self.peek_key()?;
        self.ram.set_u16(bda::KEY_HEAD, successor(self.ring().0));
        Some(key)
    }
}

fn successor(offset: u16) -> u16 {
    if offset + 2 < RING.end { offset + 2 } else { RING.start }
}

/// The key that sends `byte`, scan code in the high half; takes the rest of an escape sequence along.
fn decode(byte: u8, console: &Console) -> Option<u16> {
    match byte {
        0x1b => match console.peek_input() {
            Some(b'[' | b'O') => cursor_key(console),
            _ => Some(0x011b),
        },
        // Terminals send DEL for the backspace key, and pipes end lines with LF.
        0x7f => Some(0x0e08),
        b'\n' => Some(0x1c0d),
        _ => Some(u16::from(scan_code(byte)) << 8 | u16::from(byte)),
    }
}

/// The key of an escape sequence whose ESC has been taken; `None` for a key that no PC keyboard has.
fn cursor_key(console: &Console) -> Option<u16> {
    console.pop_input();
    let mut number = 0u8;
    loop {
        match console.pop_input()? {
            digit @ b'0'..=b'9' => number = number.wrapping_mul(10).wrapping_add(digit - b'0'),
            last => return named_key(last, number).map(|scan| u16::from(scan) << 8),
        }
    }
}

/// Scan codes of the keys that send ESC [, a number and a last byte (ECMA-48, as xterm uses it).
fn named_key(last: u8, number: u8) -> Option<u8> {
    match (last, number) {
        (b'A', _) => Some(0x48),
        (b'B', _) => Some(0x50),
        (b'C', _) => Some(0x4d),
        (b'D', _) => Some(0x4b),
        (b'H', _) | (b'~', 1) => Some(0x47),
        (b'F', _) | (b'~', 4) => Some(0x4f),
        (b'~', 2) => Some(0x52),
        (b'~', 3) => Some(0x53),
        (b'~', 5) => Some(0x49),
        (b'~', 6) => Some(0x51),
        _ => None,
    }
}

/// The scan code of the key that types `byte`; 0 where there is none (bytes beyond ASCII).
fn scan_code(byte: u8) -> u8 {
    let find = |keys: &[u8], byte| keys.iter().position(|&key| key == byte && key != 0);
    let position = match byte {
        0x08 | b'\t' | b'\r' => find(PLAIN, byte),
        // Control and a letter.
        1..=26 => find(PLAIN, byte + b'a' - 1),
        _ => find(PLAIN, byte).or_else(|| find(SHIFTED, byte)),
    };
    position.and_then(|position| u8::try_from(position + 2).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(typed: &[u8]) -> Vec<u16> {
        let console = Console::default();
        console.push_input(typed);
        let mut keys = Vec::new();
        while let Some(byte) = console.pop_input() {
            keys.extend(decode(byte, &console));
        }
        keys
    }

    #[test]
    fn bytes_become_the_keys_of_an_american_keyboard() {
        assert_eq!(keys(b"aA1!z/ "), [0x1e61, 0x1e41, 0x0231, 0x0221, 0x2c7a, 0x352f, 0x3920]);
        assert_eq!(keys(b"\r\n\x7f\x08\t"), [0x1c0d, 0x1c0d, 0x0e08, 0x0e08, 0x0f09]);
        assert_eq!(keys(b"\x03\x1a\x1b`~\\|"), [0x2e03, 0x2c1a, 0x011b, 0x2960, 0x297e, 0x2b5c, 0x2b7c]);
        assert_eq!(keys("ß".as_bytes()), [0x00c3, 0x009f]);
    }

    #[test]
    fn escape_sequences_become_cursor_keys() {
        assert_eq!(keys(b"\x1b[A\x1b[B\x1b[C\x1b[Dx"), [0x4800, 0x5000, 0x4d00, 0x4b00, 0x2d78]);
        assert_eq!(keys(b"\x1bOH\x1b[3~\x1b[5~\x1b[6~"), [0x4700, 0x5300, 0x4900, 0x5100]);
        assert_eq!(keys(b"\x1b[99999~y\x1b"), [0x1579, 0x011b]);
        assert!(keys(b"\x1b[").is_empty());
    }
}
