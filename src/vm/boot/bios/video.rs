//! INT 10h: an 80x25 text screen, shown on the console.
//!
//! ```text
//!   cursor at 40:50 ── where the guest writes next
//!   Screen          ── where the terminal's cursor is; moved there before anything is shown
//! ```
//!
//! Programs that write one line after the other appear as plain text. The terminal's cursor is moved by
//! relative sequences of ECMA-48, and only when the guest's cursor has jumped: the screen's origin is where
//! the terminal's cursor was when the machine started, so nothing of what the user had is overwritten. There is
//! no screen memory.

use super::Bios;
use super::bda;
use super::frame::Frame;

pub(super) const COLUMNS: u8 = 80;
pub(super) const ROWS: u8 = 25;
/// Characters of one call that are shown: a full screen.
const MAX_CHARACTERS: u16 = COLUMNS as u16 * ROWS as u16;
const BACKSPACE: u8 = 0x08;
const LINE_FEED: u8 = 0x0a;
const CARRIAGE_RETURN: u8 = 0x0d;

/// Code page 437 from 7Fh on.
const UPPER_HALF: &str = "⌂ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                          αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Where the terminal's cursor is, counted from the screen's origin.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Screen {
    pub(super) row: u8,
    pub(super) column: u8,
}

impl Bios {
    /// INT 10h.
    pub(super) fn video(&mut self, frame: &mut Frame) {
        match frame.ah() {
            0x00 => self.new_screen(),
            0x01 => self.ram.set_u16(bda::CURSOR_SHAPE, frame.cx()),
            0x02 => self.set_cursor(frame.dh(), frame.dl()),
            0x03 => {
                frame.set_cx(self.ram.u16(bda::CURSOR_SHAPE));
                frame.set_dx(self.ram.u16(bda::CURSOR));
            }
            0x06 => self.scroll_up(frame),
            // The character at the cursor: there is no screen memory, so a blank.
            0x08 => frame.set_ax(0x0720),
            0x09 | 0x0a => self.repeat_character(frame.al(), frame.cx()),
            0x0e => self.teletype(frame.al()),
            0x0f => {
                frame.set_ax(u16::from(COLUMNS) << 8 | u16::from(self.ram.u8(bda::VIDEO_MODE)));
                frame.set_bh(0);
            }
            0x13 => self.string(frame),
            _ => {}
        }
    }

    /// 00h: a new mode begins with an empty screen, below what was shown before.
    fn new_screen(&mut self) {
        if self.screen != Screen::default() {
            self.show(b"\r\n");
        }
        self.screen = Screen::default();
        self.set_cursor(0, 0);
    }

    /// 06h: scrolling the whole screen by AL lines, or clearing it. Smaller windows stay as they are.
    fn scroll_up(&mut self, frame: &Frame) {
        let whole = frame.cx() == 0 && frame.dh() >= ROWS - 1 && frame.dl() >= COLUMNS - 1;
        match frame.al() {
            0 if whole => {
                self.move_terminal(0, 0);
                self.show(b"\x1b[J");
            }
            lines if whole => {
                self.move_terminal(ROWS - 1, 0);
                self.show(&vec![LINE_FEED; usize::from(lines.min(ROWS))]);
            }
            _ => {}
        }
    }

    /// 09h and 0Ah: the cursor stays.
    fn repeat_character(&mut self, character: u8, count: u16) {
        let (row, column) = self.cursor();
        for _ in 0..count.min(MAX_CHARACTERS) {
            self.glyph(character);
        }
        self.set_cursor(row, column);
    }

    /// 0Eh.
    fn teletype(&mut self, character: u8) {
        let (row, column) = self.cursor();
        match character {
            // Shown even where the terminal needs none, so that lines end in the usual pair.
            CARRIAGE_RETURN => {
                self.show(b"\r");
                self.screen.column = 0;
                self.set_cursor(row, 0);
            }
            LINE_FEED => return self.line_feed(),
            BACKSPACE => self.set_cursor(row, column.saturating_sub(1)),
            // Bell, and what a terminal may make of the other control characters.
            ..0x20 => return self.show(&[character]),
            _ => return self.glyph(character),
        }
        let (row, column) = self.cursor();
        self.move_terminal(row, column);
    }

    /// 13h: CX characters at ES:BP, from row DH and column DL on. Bit 0 of AL moves the cursor along, bit 1
    /// says that attributes stand between the characters.
    fn string(&mut self, frame: &Frame) {
        let before = self.cursor();
        let stride = if frame.al() & 2 != 0 { 2 } else { 1 };
        let len = usize::from(frame.cx().min(MAX_CHARACTERS)) * stride;
        let Some(bytes) = self.ram.read(frame.es(frame.bp()), len) else { return };
        self.set_cursor(frame.dh(), frame.dl());
        for &character in bytes.iter().step_by(stride) {
            self.teletype(character);
        }
        if frame.al() & 1 == 0 {
            self.set_cursor(before.0, before.1);
        }
    }

    /// Shows a character at the cursor and moves the cursor on, at the end of a row to the next one.
    fn glyph(&mut self, character: u8) {
        let (row, column) = self.cursor();
        self.move_terminal(row, column);
        match character {
            0..0x20 => self.show(b" "),
            0x20..0x7f => self.show(&[character]),
            0x7f.. => {
                let glyph = UPPER_HALF.chars().nth(usize::from(character - 0x7f)).unwrap_or(' ');
                self.show(glyph.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if column + 1 < COLUMNS {
            self.screen.column += 1;
            self.set_cursor(row, column + 1);
        } else {
            self.set_cursor(row, 0);
            self.line_feed();
        }
    }

    /// Moves the cursor down; on the last row the screen scrolls.
    fn line_feed(&mut self) {
        let (row, column) = self.cursor();
        self.move_terminal(row, column);
        self.show(&[LINE_FEED]);
        let row = (row + 1).min(ROWS - 1);
        self.screen.row = row;
        self.set_cursor(row, column);
    }

    /// The guest's cursor, inside the screen whatever the guest has written to the data area.
    fn cursor(&self) -> (u8, u8) {
        let [column, row] = self.ram.u16(bda::CURSOR).to_le_bytes();
        (row.min(ROWS - 1), column.min(COLUMNS - 1))
    }

    fn set_cursor(&self, row: u8, column: u8) {
        self.ram.set_u16(bda::CURSOR, u16::from_le_bytes([column, row]));
    }

    /// Moves the terminal's cursor, by plain control characters where they do.
    fn move_terminal(&mut self, row: u8, column: u8) {
        let from = self.screen;
        if column == 0 && from.column != 0 {
            self.show(b"\r");
        }
        if row > from.row {
            self.show(&vec![LINE_FEED; usize::from(row - from.row)]);
        } else if row < from.row {
            self.show(format!("\x1b[{}A", from.row - row).as_bytes());
        }
        if column > from.column {
            self.show(format!("\x1b[{}C", column - from.column).as_bytes());
        } else if column > 0 {
            self.show(&vec![BACKSPACE; usize::from(from.column - column)]);
        }
        self.screen = Screen { row, column };
    }

    fn show(&self, bytes: &[u8]) {
        self.console.write_stamped(bytes);
    }
}
