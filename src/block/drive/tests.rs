//! Media that come and go, with a medium that is as slow as the test wants and a host's drive that does what a script
//! says.

use super::*;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits};
use crate::block::options::Removable;
use crate::block::protocol::host_cdrom::HostCdrom;
use crate::block::protocol::host_cdrom::fake::{DISC, EMPTY, OPEN, OTHER_DISC, Script};
use crate::block::{Buffer, Iov};
use async_trait::async_trait;
use std::io::Write;

const SIZE: u64 = 4096;

/// A medium full of `M` that answers reads when it is told to.
struct Slow {
    answers: async_channel::Receiver<()>,
    tray: Option<Arc<HostCdrom>>,
}

#[async_trait(?Send)]
impl Driver for Slow {
    fn format_name(&self) -> &'static str {
        "slow"
    }
    fn size(&self) -> u64 {
        SIZE
    }
    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }
    fn limits(&self) -> Limits {
        Limits::ANY
    }
    fn read_only(&self) -> bool {
        true
    }
    async fn read(&self, _: u64, into: &Iov) -> Result<()> {
        let _ = self.answers.recv().await;
        into.fill(0, into.len(), b'M');
        Ok(())
    }
    async fn write(&self, _: u64, _: &Iov) -> Result<()> {
        unreachable!("it is read-only")
    }
    async fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<()> {
        unreachable!("it is read-only")
    }
    async fn discard(&self, _: u64, _: u64) -> Result<()> {
        unreachable!("it is read-only")
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let node = Node::new("", Box::new(Slow { answers: self.answers.clone(), tray: None }));
        Ok(BlockStatus::of_file(&node, offset, len))
    }
    fn device(&self) -> Option<DeviceFacts> {
        let tray = self.tray.clone().map(|tray| tray as _);
        tray.is_some().then_some(DeviceFacts { logical_block_size: 2048, physical_block_size: 2048, tray })
    }
}

fn cdrom() -> OpenOptions {
    OpenOptions { removable: Some(Removable::Cdrom), ..OpenOptions::default() }
}

/// A drive with a slow medium, named `name`, and the way to have a read answered.
fn slow(name: &str, tray: Option<HostCdrom>) -> (Arc<Drive>, async_channel::Sender<()>) {
    let (sender, answers) = async_channel::unbounded();
    let (name, tray) = (name.to_owned(), tray.map(Arc::new));
    let open = move |_: &Rc<Engine>| Ok(Node::new(name, Box::new(Slow { answers, tray })));
    (Drive::over("cd0", cdrom(), open).unwrap(), sender)
}

/// A file of `size` bytes, all of them `byte`.
fn file(byte: u8, size: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![byte; size as usize]).unwrap();
    file
}

fn medium(file: &tempfile::NamedTempFile) -> Medium {
    let filename = file.path().to_str().unwrap().to_owned();
    Medium { filename, format: Some("raw".to_owned()), read_only: None }
}

async fn first_byte(local: &Local) -> Result<u8> {
    let into = Buffer::new(512).iov(512);
    local.read(0, &into).await.map(|()| into.to_vec()[0])
}

fn read(drive: &Drive) -> Result<u8> {
    drive.call(|local| async move { first_byte(&local).await }).unwrap()
}

fn tray(drive: &Drive) -> (bool, bool) {
    let tray = drive.tray().unwrap();
    (tray.inserted, tray.open)
}

/// Has work done on the drive's thread; the result comes over the channel.
fn begin<T: Send + 'static, F: Future<Output = T> + 'static>(
    drive: &Drive,
    work: impl FnOnce(Rc<Local>) -> F + Send + 'static,
) -> mpsc::Receiver<T> {
    let (sender, result) = mpsc::channel();
    drive
        .spawn(move |local| {
            let task = work(local);
            async move { sender.send(task.await).unwrap() }
        })
        .unwrap();
    result
}

#[test]
fn requests_in_flight_are_finished_before_the_medium_goes_and_those_that_wait_fail() {
    let (drive, answer) = slow("m", None);
    let other = file(b'N', SIZE);
    let first = begin(&drive, |local| async move { first_byte(&local).await });
    let new = medium(&other);
    let changed = begin(&drive, |local| async move { local.change_medium(&new).await });
    let waiting = begin(&drive, |local| async move { first_byte(&local).await });
    // All three have begun: nothing is done before the medium answers.
    drive.call(|local| async move { local.engine().yield_now().await }).unwrap();
    assert!(changed.try_recv().is_err() && first.try_recv().is_err());
    answer.try_send(()).unwrap();
    assert_eq!(first.recv().unwrap().unwrap(), b'M');
    changed.recv().unwrap().unwrap();
    assert_eq!(waiting.recv().unwrap().unwrap_err().kind(), Kind::NoMedium);
    assert_eq!(read(&drive).unwrap(), b'N');
}

#[test]
fn an_empty_drive_has_no_bytes_and_refuses_every_request() {
    let drive = Drive::open("cd0", "", &cdrom()).unwrap();
    assert_eq!((drive.size(), tray(&drive)), (0, (false, false)));
    assert_eq!(read(&drive).unwrap_err().kind(), Kind::NoMedium);
    let flushed = drive.call(|local| async move { local.flush().await }).unwrap();
    assert_eq!(flushed.unwrap_err().kind(), Kind::NoMedium);
    let resized = drive.call(|local| async move { local.resize(4096).await }).unwrap();
    assert_eq!(resized.unwrap_err().kind(), Kind::NoMedium);
    let empty = Medium { filename: "/nonexistent/disc".into(), format: None, read_only: None };
    let changed = drive.call(|local| async move { local.change_medium(&empty).await }).unwrap();
    assert!(changed.is_err());
    drive.call(|local| async move { local.eject(false).await }).unwrap().unwrap();
    assert_eq!(tray(&drive), (false, true));
    drive.close().unwrap();
}

#[test]
fn doors_move_once_and_are_told_of() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (disc, other) = (file(b'a', SIZE), file(b'b', 2 * SIZE));
    let drive = Drive::open("cd0", &medium(&disc).filename, &cdrom()).unwrap();
    let list = heard.clone();
    drive.listen_for_tray(Box::new(move |drive, open| list.lock().unwrap().push((drive.to_owned(), open))));
    let change = |new: Medium| drive.call(|local| async move { local.change_medium(&new).await }).unwrap();
    let eject = || drive.call(|local| async move { local.eject(false).await }).unwrap().unwrap();
    change(medium(&other)).unwrap();
    assert_eq!((drive.size(), read(&drive).unwrap()), (2 * SIZE, b'b'));
    eject();
    eject();
    change(medium(&disc)).unwrap();
    let moves: Vec<_> = heard.lock().unwrap().iter().map(|(_, open)| *open).collect();
    assert_eq!(moves, [true, false, true, false]);
    let writable = Medium { read_only: Some(false), ..medium(&other) };
    assert_eq!(change(writable).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!((drive.size(), drive.read_only()), (SIZE, true));
}

#[test]
fn a_floppy_that_could_not_be_exchanged_is_written_as_before() {
    for snapshot in [false, true] {
        let floppy = file(b'a', SIZE);
        let options = OpenOptions {
            removable: Some(Removable::Floppy),
            read_only: false,
            format: Some("raw".to_owned()),
            snapshot,
            ..OpenOptions::default()
        };
        let drive = Drive::open("floppy0", &medium(&floppy).filename, &options).unwrap();
        let write = |byte| {
            drive.call(move |local| async move {
                local.write(0, &Buffer::from_bytes(&[byte; 512]).iov(512)).await?;
                local.flush().await
            })
        };
        write(b'b').unwrap().unwrap();
        let missing = Medium { filename: "/nonexistent/disk".into(), format: None, read_only: None };
        assert!(drive.call(|local| async move { local.change_medium(&missing).await }).unwrap().is_err());
        assert_eq!(read(&drive).unwrap(), b'b');
        write(b'c').unwrap().unwrap();
        assert_eq!((read(&drive).unwrap(), tray(&drive)), (b'c', (true, false)));
        drive.close().unwrap();
        let kept = std::fs::read(floppy.path()).unwrap()[0];
        assert_eq!(kept, if snapshot { b'a' } else { b'c' });
    }
}

#[test]
fn a_fixed_disk_has_no_medium_to_take_out() {
    let disk = file(b'a', SIZE);
    let drive = Drive::open("hda", &medium(&disk).filename, &OpenOptions::default()).unwrap();
    let refused = drive.call(|local| async move { local.eject(true).await }).unwrap().unwrap_err();
    assert_eq!((refused.message(), drive.tray()), ("Device 'hda' is not removable", None));
}

#[test]
fn discs_that_come_and_go_in_the_host_s_drive_are_noticed() {
    let script = Script::default();
    let disc = file(b'd', SIZE);
    let (drive, answer) = slow(&medium(&disc).filename, Some(HostCdrom::over(script.clone())));
    let look = |state| {
        script.set(state);
        drive.call(|local| async move { local.follow_host().await }).unwrap()
    };
    answer.try_send(()).unwrap();
    assert_eq!((read(&drive).unwrap(), tray(&drive)), (b'M', (true, false)));
    assert!(!look(DISC));
    assert!(look(OPEN));
    assert_eq!((drive.size(), tray(&drive)), (0, (false, true)));
    assert_eq!(read(&drive).unwrap_err().kind(), Kind::NoMedium);
    assert!(!look(EMPTY));
    assert_eq!(tray(&drive), (false, false));
    // Opened again by its name, it is the file.
    assert!(look(DISC));
    assert_eq!((drive.size(), read(&drive).unwrap(), tray(&drive)), (SIZE, b'd', (true, false)));
    std::fs::write(disc.path(), vec![b'e'; 2 * SIZE as usize]).unwrap();
    assert!(!look(DISC));
    assert!(look(OTHER_DISC));
    assert_eq!((drive.size(), read(&drive).unwrap()), (2 * SIZE, b'e'));
    drive.call(|local| async move { local.eject(false).await }).unwrap().unwrap();
    assert_eq!(script.asked().len(), 2);
    assert_eq!(tray(&drive), (false, true));
    // A disc that cannot be read is no medium, and is not tried again and again.
    std::fs::remove_file(disc.path()).unwrap();
    assert!(!look(DISC) && !look(DISC));
    assert_eq!(tray(&drive), (false, false));
}
