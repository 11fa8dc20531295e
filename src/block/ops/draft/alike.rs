//! A new file that is like the one whose place it takes: owner, group, mode, and the attributes in which access control
//! lists and security labels stand.

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

/// Longest list of attributes, and longest value of one, in bytes (xattr(7)).
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Makes `new` like the file `old` with the facts `facts`; false where we may not.
pub(super) fn make(new: &Path, old: &Path, facts: &Metadata) -> io::Result<bool> {
    // Only root can give files away; that is seen below.
    let _ = chown(new, Some(facts.uid()), Some(facts.gid()));
    fs::set_permissions(new, facts.permissions())?;
    copy_attributes(old, new)?;
    let is = fs::metadata(new)?;
    Ok((is.uid(), is.gid(), is.mode()) == (facts.uid(), facts.gid(), facts.mode()))
}

fn copy_attributes(old: &Path, new: &Path) -> io::Result<()> {
    let wanted = names(old)?;
    for name in names(new)?.difference(&wanted) {
        removexattr(new, name)?;
    }
    for name in &wanted {
        let value = value(old, name)?;
        // A label that the file has already, not everyone may set.
        if self::value(new, name).ok().as_ref() != Some(&value) {
            setxattr(new, name, &value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn names(path: &Path) -> io::Result<BTreeSet<CString>> {
    let mut list = vec![0; MAX_ATTRIBUTE];
    let len = match listxattr(path, &mut list[..]) {
        // A file system without attributes.
        Err(Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    let names = list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(CString::new).collect::<Result<_, _>>()?)
}

fn value(path: &Path, name: &CString) -> io::Result<Vec<u8>> {
    let mut value = vec![0; MAX_ATTRIBUTE];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}
