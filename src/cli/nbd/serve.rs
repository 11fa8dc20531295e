//! Serving: from the command line to the last client.

use super::detach::{self, Side};
use super::image::open_image;
use super::task::Wish;
use super::{DROP_IN, Failure, no_kernel_client};
use crate::block::aio::{Backend, Engine, Socket};
use crate::block::drive::Drive;
use crate::block::error::errno_text;
use crate::block::graph::Node;
use crate::block::graph::bitmaps::{BitmapInfo, bitmap_holder};
use crate::cli::signals::Signals;
use crate::nbd_server::{Export, Listening, Offer, Server, Settings, listen};
use crate::util::text::{self, say};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

pub(super) fn run(program: &str, wish: Wish) -> Result<(), Failure> {
    let detached = match wish.fork.then(detach::fork).transpose()? {
        Some(Side::Parent(true)) => return Ok(()),
        Some(Side::Parent(false)) => std::process::exit(1),
        Some(Side::Child(detached)) => Some(detached),
        None => None,
    };
    let mut signals = Signals::take_over()?;
    allow_many_files();
    let listening = listen(&wish.address).map_err(|error| Failure::plain(&error))?;
    let drive = open_image(&wish)?;
    if let Some(device) = &wish.device {
        return Err(no_kernel_client("Failed to open", device));
    }
    check_bitmaps(&drive, &wish.bitmaps)?;
    let pid_file = wish.pid_file.as_deref().map(write_pid).transpose()?;
    if program != DROP_IN && !wish.fork {
        say(&format!("{program}: listening on {}", listening.place));
    }
    if let Some(detached) = detached {
        detached.release()?;
    }
    let served = serve(&listening, &drive, &wish, &mut signals);
    if let Some(path) = pid_file {
        // It says nothing any more.
        let _ = std::fs::remove_file(path);
    }
    let closed = drive.close();
    served?;
    closed.map_err(|error| Failure::plain(&error))
}

/// Serves until a signal comes, or the last client has left.
fn serve(
    listening: &Listening,
    drive: &Arc<Drive>,
    wish: &Wish,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let engine = Engine::new(Backend::from_environment())?;
    let settings = Settings {
        handshake_limit: wish.handshake_limit,
        persistent: wish.persistent,
        tls: wish.tls.clone(),
    };
    let server = Server::new(&engine, settings);
    server.add(Export::new(drive, offer(wish)));
    let listener = Socket::new(&engine, listening.fd.try_clone()?)?;
    // SAFETY: the descriptor is open as long as `signals`.
    let arrived = unsafe { BorrowedFd::borrow_raw(signals.as_raw_fd()) }.try_clone_to_owned()?;
    let arrived = Rc::new(arrived);
    let waiting = engine.clone();
    engine.block_on(server.run(listener, async move {
        // Without signals it runs until its last client has left.
        let _ = waiting.readable(&arrived).await;
    }))??;
    engine.drop_tasks()?;
    while signals.next().is_some() {}
    Ok(())
}

fn offer(wish: &Wish) -> Offer {
    Offer {
        name: wish.name.clone().unwrap_or_default(),
        description: wish.description.clone(),
        read_only: wish.open.read_only,
        shared: wish.shared,
        allocation_depth: wish.allocation_depth,
        bitmaps: wish.bitmaps.clone(),
    }
}

/// Whether the image has the bitmaps, and they say something.
fn check_bitmaps(drive: &Drive, wanted: &[String]) -> Result<(), Failure> {
    for name in wanted {
        let wanted = name.clone();
        let found = drive.call(|local| async move { find_bitmap(&local.root(), &wanted) });
        match found.map_err(|error| Failure::plain(&error))? {
            None => return Err(Failure::message(format!("Bitmap '{name}' is not found"))),
            Some(bitmap) if bitmap.inconsistent => {
                return Err(Failure::message(format!("Bitmap '{name}' is inconsistent and cannot be used")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A bitmap of the image, or of one that it stands on.
fn find_bitmap(top: &Rc<Node>, name: &str) -> Option<BitmapInfo> {
    let holder = bitmap_holder(top, name)?;
    holder.driver().bitmaps()?.list().into_iter().find(|bitmap| bitmap.name == name)
}

/// Writes it; returns where it is, also seen from another folder: a server in the background goes to the root.
fn write_pid(path: &str) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(text::to_path(path))?;
    let done = File::create(&path)
        .and_then(|mut file| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    done.map(|()| path).map_err(|error| {
        Failure::message(format!("cannot create PID file: Cannot open pid file: {}", errno_text(&error)))
    })
}

/// Clients have a descriptor each: as many as the host allows.
fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid; without success the limit stays as it is.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
