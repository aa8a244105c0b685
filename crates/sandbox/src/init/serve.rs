//! Init's service: takes the daemon's orders, starts children, ends them in time, reaps everything.
//!
//! One thread and one `poll`. Nothing here waits for anybody: sockets do not block, reports to a slow daemon queue up to a
//! bound, and what may hang in a file system of the guest's (looking for a program, changing the directory) is done in
//! the forked child. Guests have no say: the socket is in a directory of the host, and children inherit no descriptor
//! but their own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::SigId;

use super::child::{self, StandardStreams};
use super::outputs::Outputs;
use super::processes;
use crate::packet::{self, Packet};
use crate::wire::{End, Kept, Order, Program, Report, Start};

/// Reports that may wait for one daemon. One that lets so many wait is stuck, and can ask again after it reconnects.
const QUEUE_LEN_MAX: usize = 65_536;

/// Kept children that ended, the oldest of which are forgotten.
const ENDED_COUNT_MAX: usize = 4_096;

/// Code of a command whose time is over, as `timeout(1)` says it.
const CODE_TIMEOUT: i32 = 124;

/// Serves until it is killed, which ends the sandbox.
pub(super) fn run(control: OwnedFd, open_files: u64) -> io::Result<()> {
    let (children_ended, wake) = UnixStream::pair()?;
    children_ended.set_nonblocking(true)?;
    let signal = signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, wake)?;
    rustix::io::ioctl_fionbio(&control, true)?;
    let mut init = Init {
        control,
        children_ended,
        signal,
        open_files,
        daemons: Vec::new(),
        daemon_count: 0,
        outputs: Outputs::default(),
        children: BTreeMap::new(),
        next_id: 1,
    };
    loop {
        init.turn()?;
    }
}

struct Init {
    control: OwnedFd,
    /// Readable after a SIGCHLD.
    children_ended: UnixStream,
    signal: SigId,
    open_files: u64,
    /// Usually one; two for a moment when a daemon restarts.
    daemons: Vec<Daemon>,
    /// How many there have been.
    daemon_count: u64,
    /// Of commands that are not kept for the next daemon.
    outputs: Outputs,
    children: BTreeMap<u64, Child>,
    /// Ids from here on were never used.
    next_id: u64,
}

struct Daemon {
    number: u64,
    socket: OwnedFd,
    waiting: VecDeque<Packet>,
    is_gone: bool,
}

struct Child {
    pid: Pid,
    /// Where the child says why it could not become the program.
    trouble: Option<OwnedFd>,
    end: Option<End>,
    deadline: Option<Instant>,
    is_timeout: bool,
    is_kept: bool,
    kept: Vec<OwnedFd>,
}

impl Init {
    fn turn(&mut self) -> io::Result<()> {
        let timeout = self.children.values().filter_map(|child| child.deadline).min();
        let timeout = timeout.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|wait| Timespec::try_from(wait + Duration::from_millis(1)).ok());
        let ready: Vec<PollFlags> = {
            let mut fds =
                vec![PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.children_ended, PollFlags::IN)];
            fds.extend(self.daemons.iter().map(|daemon| {
                let wish = if daemon.waiting.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
                PollFd::new(&daemon.socket, wish)
            }));
            let is_there = |number| self.daemons.iter().any(|daemon| daemon.number == number);
            fds.extend(self.outputs.wishes(is_there));
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            fds.iter().map(PollFd::revents).collect()
        };
        if ready.get(1).is_some_and(|flags| !flags.is_empty()) {
            let mut bytes = [0; 64];
            while matches!(rustix::io::read(&self.children_ended, &mut bytes), Ok(1..)) {}
            self.reap();
        }
        let (daemons, outputs) = ready.get(2..).unwrap_or_default().split_at(self.daemons.len());
        self.outputs.read(outputs);
        for (index, flags) in daemons.iter().enumerate() {
            if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.listen_to(index);
            }
            if let Some(daemon) = self.daemons.get_mut(index) {
                daemon.send_waiting();
            }
        }
        if ready.first().is_some_and(|flags| !flags.is_empty()) {
            self.accept();
        }
        self.end_what_is_late();
        self.daemons.retain(|daemon| !daemon.is_gone);
        Ok(())
    }

    fn accept(&mut self) {
        // It may be gone already; then there is nobody to tell.
        if let Ok(socket) = rustix::net::accept_with(&self.control, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            self.daemon_count += 1;
            self.daemons.push(Daemon { number: self.daemon_count, socket, waiting: VecDeque::new(), is_gone: false });
        }
    }

    /// Takes one order; `poll` tells of the next.
    fn listen_to(&mut self, index: usize) {
        let Some(daemon) = self.daemons.get_mut(index) else { return };
        match packet::receive::<Order>(&daemon.socket) {
            Ok(Some((order, fds))) => self.obey(index, order, fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The end, or nonsense, which no daemon of ours speaks.
            Ok(None) | Err(_) => daemon.is_gone = true,
        }
    }

    fn obey(&mut self, from: usize, order: Order, fds: Vec<OwnedFd>) {
        match order {
            Order::Hello => {
                let children = self.children.iter().filter(|(_, child)| child.is_kept);
                let children =
                    children.map(|(id, child)| Kept { id: *id, pid: child.pid.as_raw_nonzero().get(), end: child.end });
                let report = Report::Hello { children: children.collect(), next_id: self.next_id };
                self.report_to(from, &report, Vec::new());
            }
            Order::Start(order) => {
                let id = order.id;
                self.next_id = self.next_id.max(id + 1);
                if let Err(error) = self.start(from, *order, fds) {
                    self.report_to(from, &Report::Failed { id, message: error.to_string() }, Vec::new());
                }
            }
            Order::Signal { id, signal } => {
                let child = self.children.get(&id).filter(|child| child.end.is_none());
                if let (Some(child), Some(signal)) = (child, Signal::from_named_raw(signal)) {
                    // A group whose last process just ended cannot be signalled, and need not.
                    let _result = rustix::process::kill_process_group(child.pid, signal);
                }
            }
            Order::Kill { id } => {
                if let Some(child) = self.children.get(&id).filter(|child| child.end.is_none()) {
                    processes::kill_all_of(child.pid, id);
                }
            }
            Order::Streams { id } => {
                let kept = self.children.get(&id).map(|child| child.kept.as_slice()).unwrap_or_default();
                let fds = kept.iter().filter_map(|fd| fd.try_clone().ok()).collect();
                self.report_to(from, &Report::Streams { id }, fds);
            }
            Order::Forget { id } => {
                if let Some(child) = self.children.get_mut(&id) {
                    // What it left behind may go on writing.
                    self.outputs.hold(self.daemons.get(from).map_or(0, |daemon| daemon.number), child.kept.drain(..));
                    child.is_kept = false;
                    if child.end.is_some() {
                        self.children.remove(&id);
                    }
                }
            }
        }
    }

    fn start(&mut self, from: usize, order: Start, fds: Vec<OwnedFd>) -> io::Result<()> {
        let (id, is_kept) = (order.id, order.is_kept);
        let deadline = order.timeout_ms.and_then(|after| Instant::now().checked_add(Duration::from_millis(after)));
        let (streams, mut kept, terminal) = if let Program::Terminal { cols, rows, .. } = order.program {
            let terminal = child::open_terminal(cols, rows)?;
            (
                StandardStreams::Terminal { inside: terminal.inside, trouble: fds.into_iter().next() },
                Vec::new(),
                Some(terminal.outside),
            )
        } else {
            let mut fds = fds.into_iter();
            let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            };
            (StandardStreams::Pipes([stdin, stdout, stderr]), fds.collect(), None)
        };
        let (trouble, tell) = std::io::pipe()?;
        rustix::io::ioctl_fionbio(&trouble, true)?;
        let (signal, open_files) = (self.signal, self.open_files);
        let pid = crate::sys::fork_child(|| {
            signal_hook::low_level::unregister(signal);
            child::main(&order, &streams, &tell, open_files)
        })?;
        if !is_kept {
            self.outputs.hold(self.daemons.get(from).map_or(0, |daemon| daemon.number), kept.drain(..));
        }
        let mut told = Vec::new();
        if let Some(terminal) = terminal {
            told.push(terminal.try_clone()?);
            if is_kept {
                kept.push(terminal);
            }
        }
        let child = Child { pid, trouble: Some(trouble.into()), end: None, deadline, is_timeout: false, is_kept, kept };
        self.children.insert(id, child);
        self.report_to(from, &Report::Started { id, pid: pid.as_raw_nonzero().get() }, told);
        Ok(())
    }

    /// Collects whatever ended: children of ours and orphans of theirs.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let child = self.children.iter_mut().find(|(_, child)| child.pid == pid && child.end.is_none());
            let Some((id, child)) = child else { continue };
            let end = child.ended(status);
            let report = match child.trouble.take().and_then(read_trouble) {
                Some(message) => Report::Failed { id: *id, message },
                None => Report::Exited { id: *id, end },
            };
            let (id, is_kept) = (*id, child.is_kept);
            if !is_kept {
                self.children.remove(&id);
            }
            self.report(&report);
        }
        let ended = self.children.iter().filter(|(_, child)| child.end.is_some()).map(|(id, _)| *id);
        let ended: Vec<u64> = ended.collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_COUNT_MAX)) {
            self.children.remove(id);
        }
    }

    fn end_what_is_late(&mut self) {
        let now = Instant::now();
        for (id, child) in &mut self.children {
            if child.end.is_none() && child.deadline.is_some_and(|deadline| deadline <= now) {
                child.deadline = None;
                child.is_timeout = true;
                processes::kill_all_of(child.pid, *id);
            }
        }
    }

    fn report(&mut self, report: &Report) {
        for index in 0..self.daemons.len() {
            self.report_to(index, report, Vec::new());
        }
    }

    fn report_to(&mut self, to: usize, report: &Report, fds: Vec<OwnedFd>) {
        let Some(daemon) = self.daemons.get_mut(to) else { return };
        match Packet::new(report, fds) {
            Ok(packet) if daemon.waiting.len() < QUEUE_LEN_MAX => daemon.waiting.push_back(packet),
            // A report that is lost would let its reader wait for ever; a daemon that is cut off reconnects and asks.
            Ok(_) | Err(_) => daemon.is_gone = true,
        }
        daemon.send_waiting();
    }
}

impl Daemon {
    fn send_waiting(&mut self) {
        while let Some(packet) = self.waiting.front() {
            match packet.send(self.socket.as_fd()) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }
}

impl Child {
    fn ended(&mut self, status: WaitStatus) -> End {
        self.deadline = None;
        let signal = status.terminating_signal();
        let code = match signal {
            _ if self.is_timeout => CODE_TIMEOUT,
            Some(signal) => 128 + signal,
            None => status.exit_status().unwrap_or_default(),
        };
        let end = End { code, signal, is_timeout: self.is_timeout };
        self.end = Some(end);
        end
    }
}

/// What a child wrote before it gave up. The pipe does not block; its other end closed at `exec`.
fn read_trouble(from: OwnedFd) -> Option<String> {
    let mut text = [0; 4096];
    let len = rustix::io::read(&from, &mut text).ok().filter(|len| *len > 0)?;
    Some(String::from_utf8_lossy(text.get(..len)?).into_owned())
}
