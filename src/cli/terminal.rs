//! The host's terminal and the other things that stdin and stdout may be.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, Once, PoisonError};

/// The terminal's settings from before, while it is in raw mode.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Puts the terminal on stdin into raw mode until it is dropped. Output keeps its newline translation. Does
/// nothing where stdin is no terminal.
#[must_use]
pub(super) struct RawMode(());

impl RawMode {
    /// Switches. From now on a panic restores the terminal too, before it reports.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub(super) fn enter() -> io::Result<RawMode> {
        let Some(mut settings) = settings(libc::STDIN_FILENO) else { return Ok(RawMode(())) };
        restore_on_panic();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        settings.c_iflag &=
            !(libc::BRKINT | libc::ICRNL | libc::INLCR | libc::IGNCR | libc::ISTRIP | libc::IXON);
        settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::IEXTEN | libc::ISIG);
        settings.c_cflag = settings.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
        (settings.c_cc[libc::VMIN], settings.c_cc[libc::VTIME]) = (1, 0);
        apply(&settings).map(|()| RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back.
fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(settings) = saved {
        // A terminal that has gone needs no settings.
        let _ = apply(&settings);
    }
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            report(panic);
        }));
    });
}

/// Whether somebody sits at stdin and stdout.
pub(super) fn is_interactive() -> bool {
    settings(libc::STDIN_FILENO).is_some() && settings(libc::STDOUT_FILENO).is_some()
}

/// A terminal's settings; `None` for anything else.
fn settings(fd: RawFd) -> Option<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the pointer is to memory of the right type.
    let result = unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) };
    // SAFETY: on success the call has filled it.
    (result == 0).then(|| unsafe { settings.assume_init() })
}

fn apply(settings: &libc::termios) -> io::Result<()> {
    // SAFETY: the settings are valid for the length of the call.
    match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stdin without the standard library's buffer, which would hide bytes from epoll.
pub(super) struct Stdin {
    file: File,
    terminal: bool,
}

impl Stdin {
    /// Stdin, unless it is closed.
    pub(super) fn open() -> Option<Stdin> {
        let file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        let terminal = settings(file.as_raw_fd()).is_some();
        Some(Stdin { file, terminal })
    }

    /// Whether somebody types there.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Reads what is there, up to `limit` bytes; nothing at the end of the input. `None`: nothing yet.
    pub(super) fn read(&mut self, limit: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; limit];
        match self.file.read(&mut bytes) {
            Ok(count) => {
                bytes.truncate(count);
                Some(bytes)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                None
            }
            // A terminal that hung up, for one: there is no more input.
            Err(_) => Some(Vec::new()),
        }
    }
}

impl AsRawFd for Stdin {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Stdout, also where another program has made it non-blocking.
pub(super) struct Stdout(File);

impl Stdout {
    /// Stdout.
    ///
    /// # Errors
    /// When it is closed.
    pub(super) fn open() -> io::Result<Stdout> {
        Ok(Stdout(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(self.0.as_raw_fd())?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_writable(fd: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure, valid for the length of the call.
    match unsafe { libc::poll(&mut poll, 1, -1) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
