//! Who on this host uses a block device: file systems that are mounted from it, from its partitions or from what was
//! built on them (device mapper, RAID), and swap space.
//!
//! ```text
//!   /sys/dev/block/8:16 ─┬─ sdb1/partition, sdb1/dev      a partition
//!                        └─ holders/dm-0 ─▶ dev           built on it
//!   /proc/self/mountinfo: 36 35 8:17 / /mnt rw … - ext4 /dev/sdb1 rw
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How many devices deep a stack is looked through.
const DEPTH: usize = 8;

/// Major and minor number.
type Number = (u32, u32);

/// What uses the device: "/dev/sdb1 on /mnt". Empty too where the host does not say.
pub(super) fn users_of(device: u64) -> Vec<String> {
    let mut parts = BTreeMap::new();
    let number = (libc::major(device), libc::minor(device));
    collect(&sysfs(number), DEPTH, &mut parts);
    let by_path = |path: &str| fs::metadata(path).ok().map(|found| found.rdev());
    let is_ours = |path: &str| {
        let number = by_path(path).map(|rdev| (libc::major(rdev), libc::minor(rdev)));
        number.is_some_and(|number| parts.contains_key(&number))
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut users = mounted(&mounts, &parts, is_ours);
    users.extend(swapped(&swaps, is_ours));
    users
}

fn sysfs((major, minor): Number) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Notes the device, its partitions, and what is built on any of them.
fn collect(folder: &Path, depth: usize, parts: &mut BTreeMap<Number, String>) {
    let number = fs::read_to_string(folder.join("dev")).ok().and_then(|text| parse_number(text.trim()));
    let (Some(number), Ok(place)) = (number, fs::canonicalize(folder)) else { return };
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if depth == 0 || parts.insert(number, format!("/dev/{name}")).is_some() {
        return;
    }
    let children =
        |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|child| child.path());
    let partitions = children(&place).filter(|child| child.join("partition").exists());
    partitions.chain(children(&place.join("holders"))).for_each(|child| collect(&child, depth - 1, parts));
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What is mounted of `parts`. File systems with device numbers of their own (btrfs) are found by their source.
fn mounted(mountinfo: &str, parts: &BTreeMap<Number, String>, is_ours: impl Fn(&str) -> bool) -> Vec<String> {
    let user = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (number, point) = (parse_number(left.next()?)?, left.nth(1)?);
        let source = unescaped(right.split(' ').nth(1)?);
        let device = match parts.get(&number) {
            Some(device) => device.clone(),
            None if number.0 == 0 && source.starts_with('/') && is_ours(&source) => source,
            None => return None,
        };
        Some(format!("{device} on {}", unescaped(point)))
    };
    mountinfo.lines().filter_map(user).collect()
}

fn swapped(swaps: &str, is_ours: impl Fn(&str) -> bool) -> Vec<String> {
    let names = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescaped);
    names.filter(|name| is_ours(name)).map(|name| format!("{name} as swap space")).collect()
}

/// Blanks and backslashes stand as three octal digits (proc(5)).
fn unescaped(text: &str) -> String {
    let mut out = text.to_owned();
    for (code, char) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, char);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
        22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        36 27 8:17 / /media/my\\040stick rw,relatime shared:2 master:1 - vfat /dev/sdb1 rw\n\
        37 27 0:45 /sub /data rw - btrfs /dev/sdb2 rw\n\
        nonsense\n";

    #[test]
    fn mount_points_of_the_disks_partitions_are_named() {
        let parts = BTreeMap::from([((8, 16), "/dev/sdb".to_owned()), ((8, 17), "/dev/sdb1".to_owned())]);
        let users = mounted(MOUNTINFO, &parts, |source| source == "/dev/sdb2");
        assert_eq!(users, ["/dev/sdb1 on /media/my stick", "/dev/sdb2 on /data"]);
        assert!(mounted(MOUNTINFO, &BTreeMap::new(), |_| false).is_empty());
    }

    #[test]
    fn swap_space_is_a_use_too() {
        let swaps =
            "Filename Type Size Used Priority\n/dev/sdb3 partition 100 0 -2\n/swapfile file 100 0 -3\n";
        assert_eq!(swapped(swaps, |name| name == "/dev/sdb3"), ["/dev/sdb3 as swap space"]);
    }

    #[test]
    fn the_root_file_system_is_in_use() {
        let root = fs::metadata("/").unwrap().dev();
        // Without a block device below it (overlay, tmpfs) there is nothing to find.
        let is_device = sysfs((libc::major(root), libc::minor(root))).exists();
        assert_eq!(users_of(root).iter().any(|user| user.ends_with(" on /")), is_device);
    }
}
