//! Editing a line on a terminal in raw mode: echo, backspace, Ctrl-U.

/// Bytes of the longest line; what exceeds it is not taken.
const LIMIT: usize = 4096;
const BACKSPACE: u8 = 0x08;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// The line being typed.
#[derive(Default)]
pub struct Editor {
    line: Vec<u8>,
    /// A carriage return has ended the line before: a line feed right after it belongs to it.
    after_return: bool,
}

impl Editor {
    /// Takes a typed byte. Returns the line when it is complete; what the terminal must show goes to `echo`.
    pub fn feed(&mut self, byte: u8, echo: &mut Vec<u8>) -> Option<String> {
        let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                echo.push(b'\n');
                return Some(String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned());
            }
            BACKSPACE | DELETE => self.erase(1, echo),
            CTRL_U => self.erase(usize::MAX, echo),
            0..0x20 => {}
            _ if self.line.len() < LIMIT => {
                self.line.push(byte);
                echo.push(byte);
            }
            _ => {}
        }
        None
    }

    /// Removes up to `count` characters from the end.
    fn erase(&mut self, count: usize, echo: &mut Vec<u8>) {
        for _ in 0..count {
            // The bytes of one character in UTF-8: continuations, then the first.
            while self.line.last().is_some_and(|byte| byte & 0xc0 == 0x80) {
                self.line.pop();
            }
            if self.line.pop().is_none() {
                return;
            }
            echo.extend(b"\x08 \x08");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> (Vec<String>, Vec<u8>) {
        let (mut editor, mut echo) = (Editor::default(), Vec::new());
        let lines = bytes.iter().filter_map(|byte| editor.feed(*byte, &mut echo)).collect();
        (lines, echo)
    }

    #[test]
    fn lines_end_with_return_newline_or_both() {
        assert_eq!(typed(b"a\rb\nc\r\nd\n\n").0, ["a", "b", "c", "d", ""]);
    }

    #[test]
    fn characters_are_erased_whole() {
        let (lines, echo) = typed("äb\x7f\x7fc\n".as_bytes());
        assert_eq!(lines, ["c"]);
        assert_eq!(echo, "äb\x08 \x08\x08 \x08c\n".as_bytes());
        assert_eq!(typed(b"abc\x15d\x08\x08\n").0, [""]);
    }

    #[test]
    fn control_characters_and_endless_lines_do_no_harm() {
        assert_eq!(typed(b"\x00\x1b\x03a\n").0, ["a"]);
        let (mut editor, mut echo) = (Editor::default(), Vec::new());
        for _ in 0..10 * LIMIT {
            assert_eq!(editor.feed(b'x', &mut echo), None);
        }
        assert_eq!(editor.feed(b'\n', &mut echo).unwrap().len(), LIMIT);
    }
}
