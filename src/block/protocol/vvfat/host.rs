//! The directory on the host. Every path is resolved below it by the kernel (openat2 with RESOLVE_BENEATH), in every
//! call anew, so that a name that becomes a link meanwhile leads nowhere else.

use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A FIFO that took a file's place is not waited for, and a terminal not taken over.
const HARMLESS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// How a file is opened: the argument of openat2.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// A name in a directory that was opened: what a change of the tree works on.
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    name: CString,
}

/// The directory that is shown.
pub(super) struct Root {
    fd: OwnedFd,
    /// Links are not followed, even those that stay inside.
    no_links: bool,
    /// How many changes are still made before all fail, as if the process had been killed.
    #[cfg(test)]
    pub(super) changes_left: AtomicU64,
    /// Renames know no flags, as on NFS.
    #[cfg(test)]
    pub(super) is_plain: bool,
}

impl Root {
    /// Opens the directory itself; its name is the user's and may lead anywhere.
    pub(super) fn open(path: &Path, no_links: bool) -> io::Result<Root> {
        let flags = libc::O_DIRECTORY | HARMLESS;
        Ok(Root {
            fd: File::options().read(true).custom_flags(flags).open(path)?.into(),
            no_links,
            #[cfg(test)]
            changes_left: AtomicU64::new(u64::MAX),
            #[cfg(test)]
            is_plain: false,
        })
    }

    /// Comes before each change of the host: the place where tests stop all that follows.
    pub(super) fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.changes_left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    /// Opens what is at `path` below the directory.
    fn open_at(&self, path: &Path, flags: i32, mode: u64) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let name = CString::new(path.as_os_str().as_bytes())?;
        let links = if self.no_links { libc::RESOLVE_NO_SYMLINKS } else { 0 };
        let how = OpenHow {
            flags: (flags | libc::O_CLOEXEC) as u64,
            mode,
            resolve: libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | links,
        };
        loop {
            // SAFETY: the path ends in NUL and the structure is as long as is said; both live through the call.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    self.fd.as_raw_fd(),
                    name.as_ptr(),
                    &how,
                    size_of::<OpenHow>(),
                )
            };
            match i32::try_from(fd) {
                // SAFETY: a new descriptor that nobody else owns.
                Ok(fd) if fd >= 0 => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                _ => match io::Error::last_os_error() {
                    // EAGAIN: a rename on the way made the kernel unsure.
                    error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                    error => return Err(error),
                },
            }
        }
    }

    /// A directory below, to list it or to change it.
    pub(super) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)
    }

    /// A regular file below.
    pub(super) fn file(&self, path: &Path, write: bool) -> io::Result<(File, Metadata)> {
        let file = File::from(self.open_at(
            path,
            HARMLESS | if write { libc::O_RDWR } else { libc::O_RDONLY },
            0,
        )?);
        let metadata = file.metadata()?;
        match metadata.is_file() {
            true => Ok((file, metadata)),
            false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// The first `len` bytes of a regular file below; zeros where it is shorter.
    pub(super) fn read_start(&self, path: &Path, len: usize) -> io::Result<(Vec<u8>, Metadata)> {
        let (file, metadata) = self.file(path, false)?;
        let mut bytes = vec![0; len];
        read_up_to(&file, 0, &mut bytes)?;
        Ok((bytes, metadata))
    }

    /// What is at `path`, following links only as far as they stay inside.
    pub(super) fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        File::from(self.open_at(path, libc::O_PATH, 0)?).metadata()
    }

    /// What is at `path` itself, a link too.
    pub(super) fn look(&self, path: &Path) -> io::Result<Metadata> {
        File::from(self.open_at(path, libc::O_PATH | libc::O_NOFOLLOW, 0)?).metadata()
    }

    /// The place of `path`, whose last part need not be there.
    pub(super) fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let directory = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Place { directory, name: CString::new(name.as_bytes())? })
    }

    /// Makes a file that must not be there.
    pub(super) fn create(&self, path: &Path, mode: u64) -> io::Result<File> {
        self.step()?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        self.open_at(path, flags, mode).map(File::from)
    }

    /// Makes a directory that must not be there.
    pub(super) fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        let place = self.place(path)?;
        // SAFETY: an open descriptor and a string that ends in NUL.
        done(unsafe { libc::mkdirat(place.directory.as_raw_fd(), place.name.as_ptr(), 0o777) })
    }

    /// Renames; with `replace`, over what is there.
    pub(super) fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        match self.rename_with(from, to, if replace { 0 } else { libc::RENAME_NOREPLACE }) {
            Err(error) if !replace && error.raw_os_error() == Some(libc::EINVAL) => {
                self.rename_without_flags(from, to)
            }
            done => done,
        }
    }

    /// Renames to a name that must be free, where the file system knows no such renames (NFS, 9p). A file has both names
    /// for a moment; a directory's new name can only be looked for first.
    fn rename_without_flags(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.look(from)?.is_dir() {
            return match self.look(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.rename_with(from, to, 0),
                Err(error) => Err(error),
            };
        }
        let (old, new) = (self.place(from)?, self.place(to)?);
        // SAFETY: open descriptors and strings that end in NUL.
        done(unsafe {
            libc::linkat(
                old.directory.as_raw_fd(),
                old.name.as_ptr(),
                new.directory.as_raw_fd(),
                new.name.as_ptr(),
                0,
            )
        })?;
        self.remove(from, false)
    }

    /// Lets two that are there change places, in one step.
    pub(super) fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.rename_with(one, other, libc::RENAME_EXCHANGE)
    }

    fn rename_with(&self, from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
        self.step()?;
        #[cfg(test)]
        if flags != 0 && self.is_plain {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let (from, to) = (self.place(from)?, self.place(to)?);
        // SAFETY: open descriptors and strings that end in NUL.
        done(unsafe {
            libc::renameat2(
                from.directory.as_raw_fd(),
                from.name.as_ptr(),
                to.directory.as_raw_fd(),
                to.name.as_ptr(),
                flags,
            )
        })
    }

    /// Removes a file or an empty directory.
    pub(super) fn remove(&self, path: &Path, is_directory: bool) -> io::Result<()> {
        self.step()?;
        let place = self.place(path)?;
        let flags = if is_directory { libc::AT_REMOVEDIR } else { 0 };
        // SAFETY: an open descriptor and a string that ends in NUL.
        done(unsafe { libc::unlinkat(place.directory.as_raw_fd(), place.name.as_ptr(), flags) })
    }
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads what there is; the rest stays as it is.
pub(super) fn read_up_to(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The path below which an open directory can be listed by the standard library.
pub(super) fn listing(directory: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string())
}

/// By what a file is known again: device, inode, size, modification time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Seen {
    pub(super) fn of(metadata: &Metadata) -> Seen {
        Seen {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }
}

/// A name for messages.
pub(super) fn shown(path: impl AsRef<OsStr>) -> String {
    crate::util::text::from_os(path.as_ref())
}
