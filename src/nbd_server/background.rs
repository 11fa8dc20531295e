//! A server on a thread of its own, for a process whose threads have other things to do.
//!
//! ```text
//!   Background ── call ─▶ the server's thread: Server, listener       drives' threads: the clients
//! ```

use super::listen::Listening;
use super::server::{Server, Settings};
use crate::block::aio::{Backend, Engine, Socket};
use crate::block::{Error, Kind, Result};
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(&Rc<Server>) + Send>;

/// The handle on a server. Dropping it ends the server and waits for that.
pub struct Background {
    jobs: async_channel::Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Serves those who come to `listening`.
    ///
    /// # Errors
    /// When the host has no thread or no descriptors left.
    pub fn start(listening: Listening, settings: Settings) -> Result<Background> {
        let (jobs, queue) = async_channel::unbounded();
        let (started, outcome) = channel();
        let thread = std::thread::Builder::new()
            .name("nbd-server".to_owned())
            .spawn(move || serve(&listening, settings, queue, &started))?;
        outcome.recv().map_err(|_| gone())??;
        Ok(Background { jobs, thread: Some(thread) })
    }

    /// Has `work` done by the server's thread, which waits for nobody, and waits for its answer.
    ///
    /// # Errors
    /// When the server has ended: its listener failed.
    pub fn call<T: Send + 'static>(&self, work: impl FnOnce(&Rc<Server>) -> T + Send + 'static) -> Result<T> {
        let (sender, answer) = channel();
        let job: Job = Box::new(move |server| {
            // The caller waits below.
            let _ = sender.send(work(server));
        });
        self.jobs.try_send(job).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }

    /// Sends all clients away; `done` is called on another thread when nothing of what they asked for goes on.
    pub fn stop(mut self, done: impl FnOnce() + Send + 'static) {
        self.jobs.close();
        let thread = self.thread.take();
        std::thread::spawn(move || {
            drop(thread.map(JoinHandle::join));
            done();
        });
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.jobs.close();
        // It ends without an answer; a panic has been reported by its thread.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The server's thread.
fn serve(
    listening: &Listening,
    settings: Settings,
    jobs: async_channel::Receiver<Job>,
    started: &Sender<Result<()>>,
) {
    let made = Engine::new(Backend::from_environment())
        .and_then(|engine| Ok((Socket::new(&engine, listening.fd.try_clone()?)?, engine)));
    let (listener, engine) = match made {
        Ok(made) => made,
        Err(error) => return drop(started.send(Err(error.into()))),
    };
    let server = Server::new(&engine, settings);
    // Whoever started it waits for this.
    let _ = started.send(Ok(()));
    let ended = engine.block_on(server.run(listener, async {
        while let Ok(job) = jobs.recv().await {
            job(&server);
        }
    }));
    if let Ok(Err(error)) | Err(error) = ended {
        crate::util::text::say(&format!("cowvm: the NBD server has ended: {error}"));
    }
    // There is nobody left to tell.
    let _ = engine.drop_tasks();
}

fn gone() -> Error {
    Error::new(Kind::Io, "the NBD server has ended")
}
