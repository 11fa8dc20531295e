//! The escape key of the console: Ctrl-A and a letter are commands to the VMM, everything else passes.

const ESCAPE: u8 = 0x01;

/// What the escape key does, for users.
pub const HELP: &str = "
C-a h    this help
C-a x    end the guest
C-a c    switch between console and monitor
C-a C-a  send C-a
";

/// What a typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is for whoever has the console.
    Byte(u8),
    /// End the guest.
    Exit,
    /// Switch between guest and monitor.
    Toggle,
    /// Show [`HELP`].
    Help,
}

/// Finds escapes in a stream of bytes.
#[derive(Default)]
pub struct Escape {
    /// The byte before was Ctrl-A.
    pending: bool,
}

impl Escape {
    /// Takes a typed byte; `None` when its meaning depends on the next, or when it has none.
    pub fn feed(&mut self, byte: u8) -> Option<Event> {
        if !std::mem::take(&mut self.pending) {
            self.pending = byte == ESCAPE;
            return (!self.pending).then_some(Event::Byte(byte));
        }
        match byte {
            ESCAPE => Some(Event::Byte(ESCAPE)),
            b'x' | b'X' => Some(Event::Exit),
            b'c' | b'C' => Some(Event::Toggle),
            b'h' | b'H' | b'?' => Some(Event::Help),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut escape = Escape::default();
        bytes.iter().filter_map(|byte| escape.feed(*byte)).collect()
    }

    #[test]
    fn escapes_are_found_and_the_rest_passes() {
        let found = events(b"a\x01\x01x\x01c\x01H\x01X");
        let expected = [
            Event::Byte(b'a'),
            Event::Byte(ESCAPE),
            Event::Byte(b'x'),
            Event::Toggle,
            Event::Help,
            Event::Exit,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_unknown_escape_is_swallowed() {
        assert_eq!(events(b"\x01zb"), [Event::Byte(b'b')]);
    }
}
