//! Where a command ends in a stream of bytes: JSON values follow each other with or without white space.
//!
//! Only brackets and strings are looked at; the parser says whether what they enclose is JSON. Strings may stand in
//! single quotes, as people write them; they come out in double ones.

/// Bytes of the longest command.
const LENGTH: usize = 64 << 10;
/// Brackets in brackets at most.
const DEPTH: usize = 32;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// An object or a list, its brackets balanced.
    Object(Vec<u8>),
    /// Something that cannot be a command; it has been passed over.
    Bad(String),
}

/// Finds frames.
#[derive(Default)]
pub(super) struct Framer {
    bytes: Vec<u8>,
    depth: usize,
    /// The quote that a string began with.
    quote: Option<u8>,
    escaped: bool,
    /// What comes belongs to something that was refused, until the line ends.
    skipping: bool,
}

impl Framer {
    /// Takes a byte; returns the frame that it completes.
    pub(super) fn feed(&mut self, byte: u8) -> Option<Frame> {
        if self.skipping {
            self.skipping = byte != b'\n';
            return None;
        }
        if self.quote.is_some() {
            self.in_string(byte);
        } else {
            match byte {
                _ if byte.is_ascii_whitespace() && self.depth == 0 => return self.end_of_word(byte),
                b'"' | b'\'' if self.depth > 0 => {
                    self.quote = Some(byte);
                    self.bytes.push(b'"');
                }
                b'{' | b'[' => {
                    self.depth += 1;
                    self.bytes.push(byte);
                }
                b'}' | b']' if self.depth > 0 => {
                    self.bytes.push(byte);
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(Frame::Object(std::mem::take(&mut self.bytes)));
                    }
                }
                _ => self.bytes.push(byte),
            }
        }
        self.check_limits()
    }

    fn in_string(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => {
                self.escaped = false;
                // JSON knows no escaped apostrophe.
                if byte == b'\'' {
                    self.bytes.pop();
                }
                self.bytes.push(byte);
            }
            b'\\' => {
                self.escaped = true;
                self.bytes.push(byte);
            }
            _ if self.quote == Some(byte) => {
                self.quote = None;
                self.bytes.push(b'"');
            }
            b'"' => self.bytes.extend(b"\\\""),
            _ => self.bytes.push(byte),
        }
    }

    /// White space outside of brackets: what stood before it was no object.
    fn end_of_word(&mut self, byte: u8) -> Option<Frame> {
        if self.bytes.is_empty() {
            return None;
        }
        let word = String::from_utf8_lossy(&self.bytes).into_owned();
        self.refuse(&format!("invalid keyword '{}'", word.escape_default()), byte == b'\n')
    }

    fn check_limits(&mut self) -> Option<Frame> {
        if self.depth > DEPTH {
            return self.refuse("too deeply nested", false);
        }
        if self.bytes.len() > LENGTH {
            return self.refuse("too long", false);
        }
        None
    }

    fn refuse(&mut self, why: &str, line_ended: bool) -> Option<Frame> {
        *self = Framer { skipping: !line_ended, ..Framer::default() };
        Some(Frame::Bad(why.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut framer = Framer::default();
        bytes.iter().filter_map(|byte| framer.feed(*byte)).collect()
    }

    fn objects(text: &str) -> Vec<String> {
        let text_of = |frame| match frame {
            Frame::Object(bytes) => String::from_utf8(bytes).unwrap(),
            Frame::Bad(why) => format!("bad: {why}"),
        };
        frames(text.as_bytes()).into_iter().map(text_of).collect()
    }

    #[test]
    fn objects_end_where_their_brackets_do_not_where_lines_do() {
        assert_eq!(
            objects("{\"a\": \"}\\\"\"}\r\n {\"b\":\n[{}]}{}"),
            ["{\"a\": \"}\\\"\"}", "{\"b\":\n[{}]}", "{}"]
        );
        assert_eq!(objects("{'a': 'it\\'s \"x\"'}"), ["{\"a\": \"it's \\\"x\\\"\"}"]);
    }

    #[test]
    fn what_is_no_object_is_refused_and_the_next_line_is_read() {
        assert_eq!(objects("xyz\n{}"), ["bad: invalid keyword 'xyz'", "{}"]);
        assert_eq!(objects("xyz more {\n{}"), ["bad: invalid keyword 'xyz'", "{}"]);
    }

    #[test]
    fn endless_and_bottomless_input_costs_bounded_memory() {
        let deep = [b"[".repeat(1 << 20), b"\n{}".to_vec()].concat();
        assert_eq!(frames(&deep), [Frame::Bad("too deeply nested".into()), Frame::Object(b"{}".to_vec())]);
        let mut framer = Framer::default();
        let endless = std::iter::once(b'{')
            .chain(std::iter::repeat_n(b'"', 1))
            .chain(std::iter::repeat_n(b'x', 1 << 20));
        let found: Vec<_> = endless.filter_map(|byte| framer.feed(byte)).collect();
        assert_eq!(found, [Frame::Bad("too long".into())]);
        assert!(framer.bytes.capacity() <= 2 * LENGTH);
    }
}
