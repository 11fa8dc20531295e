//! The console: the bytes between the host's terminal and whatever the guest uses as one, the 16550 or the
//! BIOS's keyboard and teletype.
//!
//! ```text
//!   main thread: stdin ── push_input ──▶ input queue ── pop_input ──▶ 16550, INT 16h
//!   16550, INT 10h, monitor ── write ──▶ output queue ── thread "console" ──▶ stdout
//! ```
//!
//! Invariant: nobody waits for stdout without bound. A terminal that is stopped (Ctrl-S, a full pipe) holds
//! the guest back for a second and then costs it output, never its life.

use crate::util::time::Date;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of input that wait for the guest; stdin is not read while the queue is full.
const INPUT_LIMIT: usize = 4096;
/// Bytes of output that wait for stdout.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// Bytes that stdout is given at a time.
const OUTPUT_PIECE: usize = 4096;
/// How long a writer waits for room before output is dropped.
const STALL: Duration = Duration::from_secs(1);

/// The console, shared by everything that reads or writes it.
#[derive(Default)]
pub struct Console {
    input: Mutex<Input>,
    arrived: Condvar,
    output: Mutex<Output>,
    changed: Condvar,
}

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Told after bytes have arrived, with no lock held.
    listener: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Fired once, when the queue has become half empty.
    room: Option<EventFd>,
}

impl Input {
    fn announce_room(&mut self) {
        if self.bytes.len() <= INPUT_LIMIT / 2
            && let Some(event) = self.room.take()
        {
            // It fails only when it is readable already.
            let _ = event.write(1);
        }
    }
}

#[derive(Default)]
struct Output {
    bytes: VecDeque<u8>,
    /// Each line begins with the time.
    timestamps: bool,
    /// The line has begun, with or without a time.
    in_line: bool,
    /// The thread holds bytes that stdout has not taken yet.
    writing: bool,
    /// Stdout took nothing for a second, so nobody waits any more until it does.
    stalled: bool,
}

impl Output {
    fn stamp(&mut self, bytes: &[u8]) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = Date::from_unix(now.as_secs() as i64);
        let time =
            format!("[{:02}:{:02}:{:02}.{:03}] ", date.hour, date.minute, date.second, now.subsec_millis());
        let mut out = Vec::with_capacity(bytes.len() + time.len());
        for &byte in bytes {
            if !std::mem::replace(&mut self.in_line, byte != b'\n') {
                out.extend(time.as_bytes());
            }
            out.push(byte);
        }
        out
    }
}

impl Console {
    /// A console whose output goes to `sink` from a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(sink: impl Write + Send + 'static) -> io::Result<Arc<Console>> {
        let console = Arc::new(Console::default());
        let thread = console.clone();
        std::thread::Builder::new().name("console".to_owned()).spawn(move || thread.drain(sink))?;
        Ok(console)
    }

    /// Has each line of output begin with the time, or no longer.
    pub fn toggle_timestamps(&self) {
        let mut output = lock(&self.output);
        output.timestamps = !output.timestamps;
    }

    /// Queues output of the guest, with timestamps if they are on. As [`Console::write`] else.
    pub fn write_stamped(&self, bytes: &[u8]) {
        let stamped = {
            let mut output = lock(&self.output);
            output.timestamps.then(|| output.stamp(bytes))
        };
        self.write(stamped.as_deref().unwrap_or(bytes));
    }

    /// Queues output. Waits for room when stdout is slow; once stdout has taken nothing for a second, what
    /// does not fit is dropped.
    pub fn write(&self, bytes: &[u8]) {
        let mut rest = bytes;
        let mut output = lock(&self.output);
        while !rest.is_empty() {
            if output.bytes.len() >= OUTPUT_LIMIT && !output.stalled {
                output = self.wait_for_room(output);
            }
            let (now, later) = rest.split_at(rest.len().min(OUTPUT_LIMIT.saturating_sub(output.bytes.len())));
            output.bytes.extend(now);
            self.changed.notify_all();
            if output.stalled {
                return;
            }
            rest = later;
        }
    }

    fn wait_for_room<'a>(&'a self, output: MutexGuard<'a, Output>) -> MutexGuard<'a, Output> {
        let full = |output: &mut Output| output.bytes.len() >= OUTPUT_LIMIT;
        let (mut output, timeout) =
            self.changed.wait_timeout_while(output, STALL, full).unwrap_or_else(PoisonError::into_inner);
        output.stalled = timeout.timed_out();
        output
    }

    /// Waits until stdout has taken all output, or has taken nothing for a second.
    pub fn flush(&self) {
        let mut output = lock(&self.output);
        while output.writing || !output.bytes.is_empty() {
            let (waited, timeout) =
                self.changed.wait_timeout(output, STALL).unwrap_or_else(PoisonError::into_inner);
            output = waited;
            if timeout.timed_out() {
                return;
            }
        }
    }

    /// Queues input for the guest. What exceeds [`Console::input_room`] is dropped.
    pub fn push_input(&self, bytes: &[u8]) {
        let listener = {
            let mut input = lock(&self.input);
            let room = INPUT_LIMIT.saturating_sub(input.bytes.len());
            input.bytes.extend(&bytes[..bytes.len().min(room)]);
            input.listener.clone()
        };
        self.arrived.notify_all();
        if let Some(listener) = listener {
            listener();
        }
    }

    /// How many bytes [`Console::push_input`] would take now.
    pub fn input_room(&self) -> usize {
        INPUT_LIMIT.saturating_sub(lock(&self.input).bytes.len())
    }

    /// Has `event` fired once when half the input queue is free; at once if it is.
    pub fn notify_room(&self, event: &EventFd) {
        let mut input = lock(&self.input);
        input.room = event.try_clone().ok();
        input.announce_room();
    }

    /// The next input byte, if there is one.
    pub fn pop_input(&self) -> Option<u8> {
        let mut input = lock(&self.input);
        let byte = input.bytes.pop_front();
        input.announce_room();
        byte
    }

    /// The next input byte, without taking it.
    pub fn peek_input(&self) -> Option<u8> {
        lock(&self.input).bytes.front().copied()
    }

    /// Waits until there is input; false when there was none within `timeout`.
    pub fn wait_input(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut input = lock(&self.input);
        while input.bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            input = self.arrived.wait_timeout(input, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Has `listener` called after each arrival of input.
    pub fn listen(&self, listener: Arc<dyn Fn() + Send + Sync>) {
        lock(&self.input).listener = Some(listener);
    }

    /// The thread: moves the queue to `sink`, a piece at a time so that a slow one shows that it moves.
    fn drain(&self, mut sink: impl Write) {
        loop {
            let chunk = self.next_chunk();
            // Whoever closed our stdout does not want to read it; the guest goes on.
            let _ = sink.write_all(&chunk).and_then(|()| sink.flush());
            let mut output = lock(&self.output);
            (output.writing, output.stalled) = (false, false);
            self.changed.notify_all();
        }
    }

    fn next_chunk(&self) -> Vec<u8> {
        let mut output = lock(&self.output);
        while output.bytes.is_empty() {
            output = self.changed.wait(output).unwrap_or_else(PoisonError::into_inner);
        }
        output.writing = true;
        let len = output.bytes.len().min(OUTPUT_PIECE);
        let chunk = output.bytes.drain(..len).collect();
        self.changed.notify_all();
        chunk
    }
}

/// The queues hold plain bytes: a panic elsewhere leaves them usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A terminal after Ctrl-S.
    struct Stopped;

    impl Write for Stopped {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_arrives_in_order() {
        let (sender, received) = mpsc::channel();
        let console = Console::new(Channel(sender)).unwrap();
        for byte in 0..=255u8 {
            console.write(&[byte]);
        }
        console.flush();
        let all: Vec<u8> = received.try_iter().flatten().collect();
        assert_eq!(all, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn timestamps_stand_at_the_beginning_of_each_line_while_they_are_on() {
        let mut output = Output::default();
        let stamped = [&b"a\nb"[..], b"c\n", b"d"].map(|bytes| output.stamp(bytes)).concat();
        let text = String::from_utf8(stamped).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once("] ").unwrap()).collect();
        assert!(lines.iter().all(|(time, _)| time.len() == "[hh:mm:ss.mmm".len()), "{text}");
        assert_eq!(lines.iter().map(|(_, rest)| *rest).collect::<Vec<_>>(), ["a", "bc", "d"]);
    }

    #[test]
    fn a_stopped_terminal_does_not_stop_the_writer() {
        let console = Console::new(Stopped).unwrap();
        for _ in 0..1000 {
            console.write(&[b'x'; 1024]);
        }
        console.flush();
    }

    #[test]
    fn room_is_announced_once_the_queue_is_half_empty() {
        let (console, room) = (Console::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        console.push_input(&[0; INPUT_LIMIT]);
        console.notify_room(&room);
        for _ in 0..INPUT_LIMIT / 2 {
            assert!(room.read().is_err());
            console.pop_input();
        }
        assert!(room.read().is_ok());
        console.pop_input();
        assert!(room.read().is_err());
        console.notify_room(&room);
        assert!(room.read().is_ok());
    }

    #[test]
    fn input_is_bounded_and_in_order() {
        let console = Console::default();
        assert!(!console.wait_input(Duration::ZERO));
        console.push_input(&vec![7; INPUT_LIMIT + 10]);
        assert_eq!(console.input_room(), 0);
        assert!(console.wait_input(Duration::ZERO));
        assert_eq!((console.peek_input(), console.pop_input()), (Some(7), Some(7)));
        assert_eq!(console.input_room(), 1);
    }
}
