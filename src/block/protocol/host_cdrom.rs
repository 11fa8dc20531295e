//! CD-ROM drives of the host: what is in them, their door.
//!
//! Linux' CD-ROM interface (linux/cdrom.h) is spoken through [`Ioctls`], so that the tests can stand in for a drive.
//! All of it may take seconds while a disc spins up: not for the thread of a drive that serves requests.

use crate::block::graph::driver::{HostTray, Look};
use crate::util::text;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Requests of linux/cdrom.h.
const CDROMEJECT: libc::Ioctl = 0x5309;
const CDROM_MEDIA_CHANGED: libc::Ioctl = 0x5325;
const CDROM_DRIVE_STATUS: libc::Ioctl = 0x5326;
const CDROM_LOCKDOOR: libc::Ioctl = 0x5329;

/// The slot that a drive without a changer has (`CDSL_CURRENT`).
const CURRENT: libc::c_ulong = libc::c_int::MAX as libc::c_ulong;
/// Answers to CDROM_DRIVE_STATUS.
const TRAY_OPEN: libc::c_int = 2;
const DISC_OK: libc::c_int = 4;

/// The way to a drive.
pub trait Ioctls: Send + Sync {
    /// ioctl(2) with a number as its argument; the answer is a number too.
    ///
    /// # Errors
    /// What the drive says.
    fn call(&self, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<libc::c_int>;
}

impl Ioctls for File {
    fn call(&self, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<libc::c_int> {
        // SAFETY: the requests above take a number, not an address.
        match unsafe { libc::ioctl(self.as_raw_fd(), request, argument) } {
            answer @ 0.. => Ok(answer),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A CD-ROM drive.
pub struct HostCdrom(Box<dyn Ioctls>);

impl HostCdrom {
    /// The drive at `filename`; `None` where there is none. `anyway`: what cannot tell is taken for one whose medium
    /// never changes.
    pub(super) fn open(filename: &str, anyway: bool) -> Option<HostCdrom> {
        let path = text::to_path(filename);
        // O_NONBLOCK: also an empty one.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        let is_one = file.call(CDROM_DRIVE_STATUS, CURRENT).is_ok();
        if is_one {
            // That the medium is another one than somebody saw before is no news.
            let _ = file.call(CDROM_MEDIA_CHANGED, CURRENT);
        }
        (is_one || anyway).then(|| HostCdrom(Box::new(file)))
    }

    /// A drive that answers as `ioctls` says.
    #[cfg(test)]
    pub(crate) fn over(ioctls: impl Ioctls + 'static) -> HostCdrom {
        HostCdrom(Box::new(ioctls))
    }

    /// Whether a medium is in and can be read.
    pub fn has_medium(&self) -> bool {
        self.status() == DISC_OK
    }

    /// What does not know the question has its medium in.
    fn status(&self) -> libc::c_int {
        match self.0.call(CDROM_DRIVE_STATUS, CURRENT) {
            Ok(status) => status,
            Err(error) if is_unknown(&error) => DISC_OK,
            Err(_) => 0,
        }
    }
}

impl HostTray for HostCdrom {
    fn look(&self) -> Look {
        let status = self.status();
        let changed = self.0.call(CDROM_MEDIA_CHANGED, CURRENT).is_ok_and(|answer| answer > 0);
        Look { medium: status == DISC_OK, open: status == TRAY_OPEN, changed }
    }

    fn open(&self) -> io::Result<()> {
        // A door that cannot be locked is not locked.
        let _ = self.0.call(CDROM_LOCKDOOR, 0);
        match self.0.call(CDROMEJECT, 0) {
            // What has no door gives its medium all the same.
            Err(error) if is_unknown(&error) => Ok(()),
            done => done.map(drop),
        }
    }
}

/// Whether the drive does not know the request.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ENOSYS))
}

/// A drive that does what a script says.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use std::sync::{Arc, Mutex, MutexGuard};

    /// An answer to CDROM_DRIVE_STATUS, and whether a change is still to be reported.
    type State = (libc::c_int, bool);

    /// The state of the drive, and what else was asked for.
    #[derive(Clone, Default)]
    pub(crate) struct Script(Arc<Mutex<(State, Vec<libc::Ioctl>)>>);

    pub(crate) const EMPTY: State = (1, false);
    pub(crate) const OPEN: State = (TRAY_OPEN, false);
    pub(crate) const DISC: State = (DISC_OK, false);
    pub(crate) const OTHER_DISC: State = (DISC_OK, true);

    impl Script {
        pub(crate) fn set(&self, state: State) {
            self.lock().0 = state;
        }

        pub(crate) fn asked(&self) -> Vec<libc::Ioctl> {
            self.lock().1.clone()
        }

        fn lock(&self) -> MutexGuard<'_, (State, Vec<libc::Ioctl>)> {
            self.0.lock().unwrap()
        }
    }

    impl Ioctls for Script {
        fn call(&self, request: libc::Ioctl, _: libc::c_ulong) -> io::Result<libc::c_int> {
            let (state, asked) = &mut *self.lock();
            match request {
                CDROM_DRIVE_STATUS => Ok(state.0),
                CDROM_MEDIA_CHANGED => Ok(std::mem::take(&mut state.1).into()),
                other => {
                    asked.push(other);
                    Ok(0)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{DISC, EMPTY, OPEN, OTHER_DISC, Script};
    use super::*;

    #[test]
    fn a_drive_says_what_is_in_it() {
        let script = Script::default();
        let drive = HostCdrom::over(script.clone());
        let look = |state, medium, open, changed| {
            script.set(state);
            assert_eq!(drive.has_medium(), medium);
            assert_eq!(drive.look(), Look { medium, open, changed });
        };
        look(EMPTY, false, false, false);
        look(OPEN, false, true, false);
        look(DISC, true, false, false);
        look(OTHER_DISC, true, false, true);
        assert!(!drive.look().changed, "it is told once");
    }

    #[test]
    fn the_door_is_unlocked_before_it_is_opened() {
        let script = Script::default();
        let drive = HostCdrom::over(script.clone());
        drive.open().unwrap();
        assert_eq!(script.asked(), [CDROM_LOCKDOOR, CDROMEJECT]);
    }

    #[test]
    fn a_file_is_no_drive_unless_it_is_to_be_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().to_str().unwrap();
        assert!(HostCdrom::open(name, false).is_none());
        let anyway = HostCdrom::open(name, true).unwrap();
        assert_eq!(anyway.look(), Look { medium: true, open: false, changed: false });
    }
}
