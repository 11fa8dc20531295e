//! Requests that fail, under each policy of the drive.

use super::*;
use crate::block::drive::{Action, DiskError};
use crate::block::options::ErrorPolicy;
use std::sync::Mutex;

/// A guest whose first write fails for want of space, and the errors that were heard of.
fn failing(policy: &str, features: u64) -> (Guest, Arc<Mutex<Vec<DiskError>>>) {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(b"[inject-error]\nevent = \"pwritev\"\nerrno = \"28\"\nonce = \"on\"\n").unwrap();
    let errors = ErrorPolicy::parse(None, Some(policy)).unwrap();
    let name = |path: &str| format!("blkdebug:{}:{path}", config.path().display());
    let guest = Guest::named(name, OpenOptions { errors, ..writable() }, BlkOptions::default(), features);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = heard.clone();
    guest.drive.listen_for_errors(Box::new(move |error| list.lock().unwrap().push(error)));
    (guest, heard)
}

/// Begins a write of 512 times `byte` to `sector`, by the descriptors from `first` on.
fn begin_write(guest: &mut Guest, first: u16, sector: u64, byte: u8) {
    let at = u64::from(first) * 0x100;
    guest.put_header(HEADER + at, 1, sector);
    guest.fill(STATUS + at, &[NONE]);
    guest.fill(DATA + at, &[byte; 512]);
    let parts = [(HEADER + at, 16, 0), (DATA + at, 512, 0), (STATUS + at, 1, WRITE)];
    guest.put_descriptors(DESCRIPTORS, first, &chain(&parts));
    guest.publish(first);
    guest.kick();
}

#[test]
fn a_request_that_stops_the_guest_is_done_again_before_all_others_when_it_goes_on() {
    for features in [FLUSH, FLUSH | EVENT_IDX] {
        let (mut guest, heard) = failing("enospc", features);
        begin_write(&mut guest, 0, 7, 0xa5);
        guest.wait(|_| !heard.lock().unwrap().is_empty());
        guest.device.pause();
        assert_eq!((guest.get16(USED + 2), guest.get8(STATUS)), (guest.used, NONE));
        begin_write(&mut guest, 8, 9, 0x5a);
        guest.device.resume();
        let mut heads = [guest.take_used().0, guest.take_used().0];
        heads.sort_unstable();
        assert_eq!(heads, [0, 8]);
        assert_eq!((guest.get8(STATUS), guest.get8(STATUS + 0x800)), (OK, OK));
        let image = guest.image();
        assert_eq!(
            (&image[7 * 512..][..512], &image[9 * 512..][..512]),
            (&[0xa5; 512][..], &[0x5a; 512][..])
        );
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), 1);
        assert_eq!(
            (heard[0].action, heard[0].no_space, heard[0].drive.as_str()),
            (Action::Stop, true, "test")
        );
    }
}

#[test]
fn a_reset_forgets_requests_that_wait_to_be_done_again() {
    let (mut guest, heard) = failing("stop", FLUSH);
    begin_write(&mut guest, 0, 7, 0xa5);
    guest.wait(|_| !heard.lock().unwrap().is_empty());
    guest.device.pause();
    guest.initialise(FLUSH | VERSION_1);
    guest.device.resume();
    assert_eq!(guest.read(0, &[(DATA, 512)]), (OK, 513));
    assert_eq!(guest.image(), pattern());
}

#[test]
fn a_failure_is_reported_or_ignored_as_the_policy_says() {
    for (policy, status) in [("report", IOERR), ("ignore", OK)] {
        let (mut guest, heard) = failing(policy, FLUSH);
        guest.fill(DATA, &[1; 512]);
        assert_eq!(guest.write(7, &[(DATA, 512)]).0, status, "{policy}");
        assert_eq!(guest.image(), pattern());
        assert_eq!(heard.lock().unwrap().len(), 1);
        assert_eq!(guest.write(7, &[(DATA, 512)]).0, OK);
    }
}

#[test]
fn requests_that_wait_to_be_done_again_are_part_of_the_vm_state() {
    let (mut guest, heard) = failing("stop", FLUSH);
    begin_write(&mut guest, 0, 7, 0xa5);
    guest.wait(|_| !heard.lock().unwrap().is_empty());
    guest.device.pause();
    let state = guest.device.save("pci.1").unwrap();
    guest.device.reset();
    guest.device.check(&state).unwrap();
    guest.device.load(&state).unwrap();
    guest.device.resume();
    assert_eq!(guest.take_used(), (0, 1));
    assert_eq!((guest.get8(STATUS), &guest.image()[7 * 512..][..512]), (OK, &[0xa5; 512][..]));
}
