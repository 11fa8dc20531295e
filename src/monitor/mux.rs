//! The escape key of the console: Ctrl-A and a letter are commands to the VMM, everything else passes.

/// The key, if users do not choose another (`-echr`).
pub const ESCAPE: u8 = 0x01;

/// What a typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is for whoever has the console.
    Byte(u8),
    /// End the guest.
    Exit,
    /// Switch between guest and monitor.
    Toggle,
    /// Show [`Escape::help`].
    Help,
    /// Write what the disks have in snapshot mode back to their images.
    Save,
    /// Timestamps on or off.
    Timestamps,
    /// Send a break.
    Break,
}

/// The letters, what they mean and what the help says of it.
const KEYS: &[(u8, Event, &str)] = &[
    (b'h', Event::Help, "print this help"),
    (b'x', Event::Exit, "exit emulator"),
    (b's', Event::Save, "save disk data back to file (if -snapshot)"),
    (b't', Event::Timestamps, "toggle console timestamps"),
    (b'b', Event::Break, "send break (magic sysrq)"),
    (b'c', Event::Toggle, "switch between console and monitor"),
];

/// Finds escapes in a stream of bytes.
pub struct Escape {
    key: u8,
    /// The byte before was the key.
    pending: bool,
}

impl Escape {
    /// Escapes that begin with `key`; none if that is 0.
    pub fn new(key: u8) -> Escape {
        Escape { key, pending: false }
    }

    /// Takes a typed byte; `None` when its meaning depends on the next, or when it has none.
    pub fn feed(&mut self, byte: u8) -> Option<Event> {
        if !std::mem::take(&mut self.pending) {
            self.pending = byte == self.key && self.key != 0;
            return (!self.pending).then_some(Event::Byte(byte));
        }
        match byte.to_ascii_lowercase() {
            _ if byte == self.key => Some(Event::Byte(byte)),
            b'?' => Some(Event::Help),
            letter => KEYS.iter().find(|(key, ..)| *key == letter).map(|(_, event, _)| *event),
        }
    }

    /// What the escape key does, for users.
    pub fn help(&self) -> String {
        let key = match self.key {
            0x01..=0x1a => format!("C-{}", char::from(self.key - 1 + b'a')),
            other => format!("<{other:#04x}>"),
        };
        let lines = KEYS.iter().map(|(letter, _, text)| format!("{key} {}    {text}\n", char::from(*letter)));
        format!("\n{}{key} {key}  sends {key}\n", lines.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut escape = Escape::new(ESCAPE);
        bytes.iter().filter_map(|byte| escape.feed(*byte)).collect()
    }

    #[test]
    fn escapes_are_found_and_the_rest_passes() {
        let found = events(b"a\x01\x01x\x01c\x01H\x01X\x01s\x01T\x01b");
        let expected = [
            Event::Byte(b'a'),
            Event::Byte(ESCAPE),
            Event::Byte(b'x'),
            Event::Toggle,
            Event::Help,
            Event::Exit,
            Event::Save,
            Event::Timestamps,
            Event::Break,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_unknown_escape_is_swallowed() {
        assert_eq!(events(b"\x01zb"), [Event::Byte(b'b')]);
    }

    #[test]
    fn the_key_can_be_another_or_none() {
        let mut escape = Escape::new(0x14);
        assert_eq!(escape.feed(0x01), Some(Event::Byte(0x01)));
        assert_eq!((escape.feed(0x14), escape.feed(b'x')), (None, Some(Event::Exit)));
        assert!(escape.help().contains("\nC-t x "), "{}", escape.help());
        assert_eq!(Escape::new(0).feed(0), Some(Event::Byte(0)));
    }
}
