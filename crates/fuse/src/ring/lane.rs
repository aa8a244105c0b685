//! The threads of a ring: lanes, which serve, and the carrier.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::memory::{Commands, Event, Slot};
use super::{Entry, Held, Shared, Task, Ticket, leave};
use crate::reply::Due;
use crate::request::{Dialect, parse_parts};
use crate::serve::Server;
use crate::{Errno, Filesystem};

/// Names are copied before they are read, so that the answer can be written over them. What is longer, data to be written, is read in
/// its place.
const COPIED_LEN: usize = 8 << 10;

/// The thread of a CPU.
pub(super) struct Lane<F> {
    pub(super) shared: Arc<Shared>,
    server: Arc<Server<F>>,
    post: usize,
    commands: Commands,
    dialect: Dialect,
    has_panicked: bool,
}

impl<F: Filesystem> Lane<F> {
    pub(super) fn new(shared: &Arc<Shared>, server: &Arc<Server<F>>, post: usize, commands: Commands) -> Self {
        let dialect = server.agreed.dialect();
        let (shared, server) = (Arc::clone(shared), Arc::clone(server));
        Self { shared, server, post, commands, dialect, has_panicked: false }
    }

    /// Lends the kernel its first entries.
    ///
    /// # Errors
    /// If it does not take one of them.
    pub(super) fn lend(&mut self, slots: Vec<Slot>) -> io::Result<()> {
        self.commands.enable()?;
        slots.into_iter().try_for_each(|slot| self.commands.register(slot))?;
        self.commands.submit()?;
        // What is refused is refused at once.
        let mut events = Vec::new();
        self.commands.events(&mut events);
        for event in events {
            match event {
                Event::Rung => {}
                Event::Back(_, Err(error)) => return Err(error.into()),
                // Somebody was quick to ask.
                Event::Back(slot, Ok(())) => self.shared.posts[self.post].put(Task::Serve(slot)),
            }
        }
        Ok(())
    }

    /// Serves until the file system is gone.
    ///
    /// # Errors
    /// When the ring fails, or the file system has panicked.
    pub(super) fn run(mut self) -> io::Result<()> {
        let (mut events, mut tasks) = (Vec::new(), Vec::new());
        let mut requests = VecDeque::new();
        let mut names = vec![0; COPIED_LEN];
        let shared = Arc::clone(&self.shared);
        let post = &shared.posts[self.post];
        loop {
            // Answers first, those of this thread among them, and what must be served. When nothing is left it waits.
            loop {
                post.take(&mut tasks, requests.is_empty());
                if tasks.is_empty() {
                    break;
                }
                for task in tasks.drain(..) {
                    match task {
                        Task::Give(slot) if shared.has_ended() => drop(slot),
                        Task::Give(slot) => self.commands.commit(slot)?,
                        Task::Serve(slot) => requests.push_back(slot),
                    }
                }
            }
            if let Some(slot) = requests.pop_front() {
                // The file system may be long, and may even wait for what an answer sets free.
                self.commands.submit()?;
                self.serve(slot, &mut names);
                continue;
            }
            if shared.has_ended() && self.commands.has_nothing_lent() {
                let panicked = || Err(io::Error::other("the file system has panicked in a thread of the ring"));
                return if self.has_panicked { panicked() } else { Ok(()) };
            }
            self.commands.wait()?;
            self.commands.events(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Rung => {}
                    Event::Back(slot, Ok(())) => requests.push_back(slot),
                    Event::Back(slot, Err(error)) => came_back(&shared, &mut self.commands, slot, error)?,
                }
            }
        }
    }

    fn serve(&mut self, slot: Slot, names: &mut [u8]) {
        let Some((header, structure, len)) = slot.request() else {
            // The kernel gives no such thing. Nobody can be answered, since nobody is known.
            tracing::error!(?slot, "the ring has given what is no request");
            return;
        };
        self.shared.lane(&slot).serving.fetch_add(1, Ordering::Relaxed);
        let payload_len = slot.request_payload().len();
        let mut serve = |rest: &[u8], entry: Entry| {
            let ticket = Ticket { shared: Arc::clone(&self.shared), entry };
            let due = Due::by_ring(&self.server.device, header.unique, ticket);
            let (request, operation) = parse_parts(&header, &structure[..len], rest, self.dialect);
            // The last word ends nothing here: the commands end when the file system is gone. A panic would leave those without
            // an answer who ask on this CPU from now on.
            let served = catch_unwind(AssertUnwindSafe(|| self.server.answer(&request, operation, || due)));
            self.has_panicked |= served.is_err();
        };
        match names.get_mut(..payload_len) {
            Some(names) => {
                names.copy_from_slice(slot.request_payload());
                serve(names, Entry::Free(slot));
            }
            None => {
                let held = Arc::new(Mutex::new(Held::Reading));
                serve(slot.request_payload(), Entry::Held(Arc::clone(&held)));
                leave(&self.shared, &held, slot);
            }
        }
    }
}

/// The thread that gives answers for others.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Commands,
}

impl Carrier {
    /// The ring did not come to be, and the kernel is told so: until then those who ask it wait for a ring.
    pub(super) fn refuse(mut self) -> io::Result<()> {
        self.commands.enable()?;
        self.commands.register_nothing()
    }

    /// Gives answers until the file system is gone.
    ///
    /// # Errors
    /// When the ring fails.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.commands.enable()?;
        let (mut events, mut tasks) = (Vec::new(), Vec::new());
        let shared = Arc::clone(&self.shared);
        loop {
            loop {
                shared.carrier().take(&mut tasks, true);
                if tasks.is_empty() {
                    break;
                }
                for task in tasks.drain(..) {
                    match task {
                        Task::Give(slot) if shared.has_ended() => drop(slot),
                        Task::Give(slot) => self.commands.commit(slot)?,
                        Task::Serve(slot) => shared.lane(&slot).put(Task::Serve(slot)),
                    }
                }
            }
            if shared.has_ended() && self.commands.has_nothing_lent() {
                return Ok(());
            }
            self.commands.wait()?;
            self.commands.events(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Rung => {}
                    Event::Back(slot, Ok(())) => shared.lane(&slot).put(Task::Serve(slot)),
                    Event::Back(slot, Err(error)) => came_back(&shared, &mut self.commands, slot, error)?,
                }
            }
        }
    }
}

/// The kernel did not take a slot, or has given it up.
fn came_back(shared: &Shared, commands: &mut Commands, slot: Slot, error: Errno) -> io::Result<()> {
    match error {
        Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV => shared.end(),
        Errno::INTR | Errno::AGAIN if !shared.has_ended() && !slot.is_new() => commands.commit(slot)?,
        _ if shared.has_ended() => {}
        error if slot.is_new() => tracing::error!(?slot, %error, "the kernel did not take an entry again"),
        // Its request was given up, and its entry with it.
        error => {
            tracing::warn!(?slot, %error, "the kernel did not take an answer; its entry is made anew");
            commands.register(slot)?;
        }
    }
    Ok(())
}
