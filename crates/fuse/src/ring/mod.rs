//! FUSE over `io_uring` (Linux 6.14): requests come by rings, and an answer is given with the wish for the next request.
//!
//! The kernel has a queue for each CPU, and gives a request to that of the CPU on which it was asked. A queue has entries
//! ([`memory::Slot`]), each for one request at a time, which wait in the kernel, are filled, and go back with the answer. Each
//! CPU's entries are served by a thread that stays there ([`lane`]): whoever asks and whoever answers take turns on one CPU, with one
//! system call for the answer and the wait for the next request.
//!
//! The kernel fills an entry in the thread that gave it, and ends the entry with that thread. So a reply that comes
//! from another thread (which may end, or have better things to do) fills out the entry, and hands it to the lane if that
//! sleeps, and to the *carrier* if not: a thread that stays nowhere and calls no file system, so that it is never long in
//! giving an answer, whatever the lane waits for. Large answers go by the carrier, too, if there is more to do than one of them:
//! the kernel copies them once more, and the lane's CPU is that of the reader. What is asked by an entry that the carrier gave
//! comes to the carrier, and is passed on to the lane.
//!
//! ```text
//! kernel ─► lane ─► file system ─► reply ─┬─► lane ────► kernel
//!            ▲                            └─► carrier ─► kernel
//!            └────────────── carrier ◄───────────────────┘
//! ```
//!
//! The device is read all the while: forgets and interrupts still come there, and everything before the last queue has its
//! first entry.
//!
//! # When the process is killed
//!
//! Seen on Linux 6.18, with a server that was ended by `SIGKILL`:
//!
//! | | if nobody else holds the device | if a keeper holds it |
//! |---|---|---|
//! | a request that was given to the server | `ECONNABORTED` | waits for ever |
//! | a request that was on its way | `ECANCELED` or `ECONNABORTED` | the same, or waits for ever |
//! | a request that comes later | `ENOTCONN`, as ever | waits until there are entries again, and then until one of them is answered |
//! | [`resend`](crate::resend) | – | is taken, and does nothing: it knows only what was read from the device |
//! | another process registers entries | – | what comes from then on is served; what the dead one had is not asked again |
//! | the mount is aborted (fusectl) | – | all who wait get `ECONNABORTED` |
//!
//! A signal frees whoever waits, but not for an answer to `FLUSH`. So a mount by rings does not survive its process, and must not
//! be kept: see [`Transport::Ring`](crate::Transport::Ring). A process that has files of its own mount open, and dies without
//! closing them, can wait for itself in the kernel, where nothing ends it: its rings are taken apart after its files.

mod lane;
mod memory;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use self::lane::{Carrier, Lane};
use self::memory::{Commands, Slot, slots};
use crate::serve::Server;
use crate::session::{stay_on, usable_cpus};
use crate::{Device, Errno, Filesystem, Wishes};

/// Entries of a queue besides those that the kernel's own reading ahead may fill, which others do not wait behind then. Of an entry
/// only the pages that were written to take room, and the kernel takes the one first that was used last.
const ENTRIES_MORE: usize = 64;
/// Answers of this length, in bytes, are given by the carrier if there is more to do.
const LARGE_LEN: usize = 64 << 10;

/// Why a file system is served by the device although a ring was wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyDevice {
    /// The kernel does not know rings: before Linux 6.14.
    Unknown,
    /// The kernel has them switched off (`/sys/module/fuse/parameters/enable_uring`), or was built without them.
    SwitchedOff,
    /// This process gets no ring: `io_uring` is not there, or switched off for it (`kernel.io_uring_disabled`, a filter).
    NoRing(Errno),
    /// There is no memory for its entries, or no thread.
    NoMemory(Errno),
    /// The kernel has agreed, and did not take the entries then.
    Refused(Errno),
    /// Another process has said hello for this mount.
    TakenUp,
}

impl std::fmt::Display for WhyDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("the kernel does not know FUSE over io_uring (Linux 6.14)"),
            Self::SwitchedOff => {
                f.write_str("FUSE over io_uring is not switched on (/sys/module/fuse/parameters/enable_uring)")
            }
            Self::NoRing(error) => write!(f, "this process gets no io_uring: {error}"),
            Self::NoMemory(error) => write!(f, "there is no memory for a ring: {error}"),
            Self::Refused(error) => write!(f, "the kernel does not take the ring: {error}"),
            Self::TakenUp => f.write_str("the mount was begun by another process"),
        }
    }
}

/// What all threads know.
#[derive(Debug)]
struct Shared {
    /// Of each lane, and of the carrier at the end.
    posts: Vec<Post>,
    /// The lane of each queue.
    lanes: Vec<usize>,
    has_ended: AtomicBool,
}

/// What others have for a thread.
#[derive(Debug)]
struct Post {
    inbox: Mutex<Inbox>,
    /// Watched by the thread's ring.
    bell: OwnedFd,
    /// Requests of a lane that are not answered.
    serving: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inbox {
    tasks: Vec<Task>,
    is_asleep: bool,
}

#[derive(Debug)]
enum Task {
    /// It holds an answer.
    Give(Slot),
    /// It holds a request.
    Serve(Slot),
}

thread_local! {
    /// Which ring's thread this is, by address, and the number of its post.
    static HERE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Post {
    fn new() -> std::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { inbox: Mutex::default(), bell, serving: AtomicUsize::new(0) })
    }

    fn put(&self, task: Task) {
        let must_wake = {
            let mut inbox = lock(&self.inbox);
            inbox.tasks.push(task);
            std::mem::take(&mut inbox.is_asleep)
        };
        if must_wake {
            self.ring();
        }
    }

    /// Gives it back if the thread is about something, which may be long.
    fn put_if_asleep(&self, task: Task) -> Result<(), Task> {
        {
            let mut inbox = lock(&self.inbox);
            if !std::mem::take(&mut inbox.is_asleep) {
                return Err(task);
            }
            inbox.tasks.push(task);
        }
        self.ring();
        Ok(())
    }

    fn ring(&self) {
        // It fails only when it was rung 2^64 times.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Takes what is there. If it is nothing, and the thread is idle otherwise, whoever brings something rings from now on.
    fn take(&self, into: &mut Vec<Task>, is_idle: bool) {
        let mut inbox = lock(&self.inbox);
        into.append(&mut inbox.tasks);
        inbox.is_asleep = is_idle && into.is_empty();
    }
}

impl Shared {
    fn carrier(&self) -> &Post {
        &self.posts[self.posts.len() - 1]
    }

    fn here(self: &Arc<Self>) -> Option<usize> {
        let (ring, post) = HERE.get();
        (ring == Arc::as_ptr(self).addr()).then_some(post)
    }

    /// Gives a slot that holds an answer back to the kernel, by the thread that should.
    fn give(self: &Arc<Self>, slot: Slot) {
        let lane = self.lane(&slot);
        let is_alone = lane.serving.fetch_sub(1, Ordering::Relaxed) == 1;
        let is_large = slot.answer_len() >= LARGE_LEN;
        match self.here() {
            // Whoever asked for so much, and for nothing else, waits, and needs no CPU.
            Some(post) if post == self.lanes[usize::from(slot.queue())] && (!is_large || is_alone) => {
                self.posts[post].put(Task::Give(slot));
            }
            // Of another lane's thread, which has a ring of its own, too.
            _ if !is_large => {
                if let Err(task) = lane.put_if_asleep(Task::Give(slot)) {
                    self.carrier().put(task);
                }
            }
            _ => self.carrier().put(Task::Give(slot)),
        }
    }

    fn lane(&self, slot: &Slot) -> &Post {
        &self.posts[self.lanes[usize::from(slot.queue())]]
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// The file system is gone: all threads end.
    fn end(&self) {
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            self.posts.iter().for_each(Post::ring);
        }
    }
}

/// Where the answer to a request that came by a ring goes.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    entry: Entry,
}

#[derive(Debug)]
enum Entry {
    /// Nobody reads the request any more: the answer is written over it.
    Free(Slot),
    /// The thread that serves the request may still read from it.
    Held(Arc<Mutex<Held>>),
}

/// Between the serving thread, which reads the request in its place, and whoever answers: the last of both gives it back.
#[derive(Debug)]
enum Held {
    Reading,
    /// The reader has left it.
    Left(Slot),
    /// Answered while it was read.
    Answered(Answer),
    Given,
}

/// Of what has much data in the request, and so little in the answer.
#[derive(Debug)]
struct Answer {
    error: i32,
    unique: u64,
    body: Vec<u8>,
}

impl Ticket {
    /// `error` is 0 or a negative errno.
    pub(crate) fn answer<B: AsRef<[u8]>>(self, error: i32, unique: u64, body: &[B]) {
        let mut slot = match self.entry {
            Entry::Free(slot) => slot,
            Entry::Held(held) => {
                let mut held = lock(&held);
                match std::mem::replace(&mut *held, Held::Given) {
                    Held::Left(slot) => slot,
                    _ => {
                        let body = body.iter().flat_map(|piece| piece.as_ref().iter().copied()).collect();
                        *held = Held::Answered(Answer { error, unique, body });
                        return;
                    }
                }
            }
        };
        slot.fill(error, unique, body);
        self.shared.give(slot);
    }
}

/// The reader of a held slot has done with it.
fn leave(shared: &Arc<Shared>, held: &Mutex<Held>, mut slot: Slot) {
    let mut held = lock(held);
    match std::mem::replace(&mut *held, Held::Given) {
        Held::Answered(Answer { error, unique, body }) => {
            slot.fill(error, unique, &[body]);
            shared.give(slot);
        }
        _ => *held = Held::Left(slot),
    }
}

/// Rings that no thread has begun to use, made before the kernel is asked for them.
#[derive(Debug)]
pub(crate) struct Prepared {
    shared: Arc<Shared>,
    /// Of each lane: where it stays if it can, its ring, and the slots that it begins with.
    lanes: Vec<(Option<usize>, Commands, Vec<Slot>)>,
    /// It waits for what it is told. That there is a thread is known before the kernel is asked: without one it could not be
    /// told that there will be no ring.
    carrier: JoinHandle<std::io::Result<()>>,
    carrier_goes: Sender<bool>,
}

impl Prepared {
    /// # Errors
    /// Why there can be none.
    pub(crate) fn new(device: &Device, wishes: &Wishes) -> Result<Self, WhyDevice> {
        let queue_count = possible_cpus().ok_or(WhyDevice::NoRing(Errno::NOENT))?;
        let usable = usable_cpus();
        // A thread for each CPU that we may use. What is asked on others is served by one that stays nowhere.
        let mut places: Vec<Option<usize>> =
            usable.iter().copied().filter(|&cpu| cpu < queue_count).map(Some).collect();
        let lane_of = |cpu| places.iter().position(|place| *place == Some(cpu)).unwrap_or(places.len());
        let lanes: Vec<usize> = (0..queue_count).map(lane_of).collect();
        if lanes.contains(&places.len()) {
            places.push(None);
        }
        let no_memory = |error: std::io::Error| WhyDevice::NoMemory(errno(&error));
        let posts = (0..=places.len()).map(|_| Post::new()).collect::<std::io::Result<Vec<_>>>().map_err(no_memory)?;
        let entry_count = usize::from(wishes.max_background) + ENTRIES_MORE;
        let commands = |post: &Post, numbers| {
            Commands::new(device, &post.bell, numbers).map_err(|error| match errno(&error) {
                error @ (Errno::NOMEM | Errno::MFILE | Errno::NFILE) => WhyDevice::NoMemory(error),
                error => WhyDevice::NoRing(error),
            })
        };
        let mut made = Vec::new();
        let mut slot_count = 0;
        for (lane, place) in places.into_iter().enumerate() {
            let first = slot_count;
            let mut own = Vec::new();
            for queue in (0..queue_count).filter(|&queue| lanes[queue] == lane) {
                let queue = u16::try_from(queue).map_err(|_| WhyDevice::NoMemory(Errno::INVAL))?;
                let more = slots(slot_count, entry_count, queue, wishes.payload_len_max());
                own.extend(more.map_err(WhyDevice::NoMemory)?);
                slot_count += entry_count;
            }
            made.push((place, commands(&posts[lane], first..slot_count)?, own));
        }
        let carrier_commands = commands(&posts[posts.len() - 1], 0..slot_count)?;
        let shared = Arc::new(Shared { posts, lanes, has_ended: AtomicBool::new(false) });
        let (carrier_goes, goes) = channel();
        let carrier = Carrier { shared: Arc::clone(&shared), commands: carrier_commands };
        let carrier = std::thread::Builder::new().name("fuse-carrier".to_owned()).spawn(move || match goes.recv() {
            Ok(true) => carrier.run(),
            Ok(false) => carrier.refuse(),
            // The kernel has offered no ring.
            Err(_) => Ok(()),
        });
        Ok(Self { shared, lanes: made, carrier: carrier.map_err(no_memory)?, carrier_goes })
    }

    /// Begins to serve. If that cannot be, the kernel goes back to the device.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn spawn<F: Filesystem>(self, server: &Arc<Server<F>>) -> Result<Serving, WhyDevice> {
        let Self { shared, lanes, carrier, carrier_goes } = self;
        let (told, heard) = channel();
        let mut threads = vec![carrier];
        let mut goes = vec![carrier_goes];
        let mut failed = None;
        for (post, (place, commands, slots)) in lanes.into_iter().enumerate() {
            let (go, goes_on) = channel();
            let begin = Begin { told: told.clone(), goes_on };
            let mut lane = Lane::new(&shared, server, post, commands);
            let work = move || {
                HERE.set((Arc::as_ptr(&lane.shared).addr(), post));
                place.into_iter().for_each(stay_on);
                let lent = lane.lend(slots);
                if begin.with(lent) { lane.run() } else { Ok(()) }
            };
            let name = format!("fuse-ring-{}", place.map_or_else(|| "x".to_owned(), |cpu| cpu.to_string()));
            match std::thread::Builder::new().name(name).spawn(work) {
                Ok(thread) => threads.push(thread),
                Err(error) => failed = Some(WhyDevice::NoMemory(errno(&error))),
            }
            goes.push(go);
        }
        drop(told);
        for lent in heard {
            failed = failed.or(lent.err().map(|error| WhyDevice::Refused(errno(&error))));
        }
        for go in goes {
            // A thread that is gone hears nothing, and is waited for below.
            let _ = go.send(failed.is_none());
        }
        match failed {
            None => Ok(Serving { shared, threads }),
            Some(why) => {
                for thread in threads {
                    let ended = thread.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()));
                    ended.unwrap_or_else(|error| tracing::debug!(%error, "a thread of the ring"));
                }
                Err(why)
            }
        }
    }
}

/// Before a thread serves: it tells how its beginning went, and hears whether the others' did, too.
struct Begin {
    told: Sender<std::io::Result<()>>,
    goes_on: Receiver<bool>,
}

impl Begin {
    fn with(self, begun: std::io::Result<()>) -> bool {
        let Self { told, goes_on } = self;
        // Whoever asked waits for all of us.
        let _ = told.send(begun);
        drop(told);
        goes_on.recv().unwrap_or(false)
    }
}

/// Threads that serve by rings.
#[derive(Debug)]
pub(crate) struct Serving {
    shared: Arc<Shared>,
    pub(crate) threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Serving {
    /// Ends the threads when it is called, which is when the device has ended.
    pub(crate) fn ending(&self) -> impl FnOnce() + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.end()
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// How many CPUs there may be: so many queues the kernel has.
fn possible_cpus() -> Option<usize> {
    count_of(&std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?)
}

/// How many numbers such as `0-3,8` are.
fn count_of(list: &str) -> Option<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').map(range).sum::<Option<usize>>().filter(|&count| count > 0)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
