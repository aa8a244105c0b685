//! Makes a store on this machine far away, and counts what is asked of it.
//!
//! ```text
//! relay 127.0.0.1:9000        prints the port it listens on, then obeys lines on its input:
//!   delay 10000               round trip in microseconds from now on
//!   take                      prints the counts since the last `take`, as one line of JSON
//! ```
//!
//! Each direction of a connection is a [`Lane`]: a queue of chunks, each with the time at which it may go on, half a round
//! trip after it came. The queue is long, so that only the delay is felt and not a limit of throughput. What is first sent
//! on a new connection waits for another round trip: that is the handshake, which the kernel has already done with us.
//!
//! Bytes do not pass through this program where they need not: bodies are spliced from socket to pipe to socket, a pipe
//! for a chunk. Only the heads of requests are read, to be counted. One thread serves all.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bench_tools::call::{self, Body, Chunks};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::Timespec;

const MIB: usize = 1 << 20;
/// What a pipe holds: the most that an ordinary user may ask for.
const PIPE_LEN: usize = MIB;
/// What may be under way in one lane. At 20 ms this still lets 3 GiB pass in a second.
const LANE_LEN_MAX: usize = 64 * MIB;
/// Pipes without work are kept up to this number.
const IDLE_PIPE_COUNT: usize = 256;
const HEAD_LEN_MAX: usize = 64 << 10;

const LISTENER: u64 = u64::MAX;
const CONTROL: u64 = u64::MAX - 1;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

enum Load {
    Bytes { bytes: Vec<u8>, at: usize },
    Pipe { pipe: Pipe, len: usize },
}

struct Chunk {
    due: Instant,
    load: Load,
}

/// Where a lane is in what it carries.
enum Parse {
    /// Answers: never looked into.
    Blind,
    Head(Vec<u8>),
    Body(u64),
    Chunked(Chunks),
}

struct Lane {
    queue: VecDeque<Chunk>,
    queued_len: usize,
    parse: Parse,
    /// Nothing moves on before: the handshake.
    not_before: Instant,
    is_readable: bool,
    is_writable: bool,
    has_ended: bool,
    is_shut: bool,
}

impl Lane {
    fn new(parse: Parse, not_before: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_len: 0,
            parse,
            not_before,
            is_readable: true,
            is_writable: true,
            has_ended: false,
            is_shut: false,
        }
    }

    fn push(&mut self, load: Load, len: usize, half: Duration) {
        let due = Instant::now().max(self.not_before) + half;
        self.queued_len += len;
        self.queue.push_back(Chunk { due, load });
    }
}

#[derive(Default)]
struct Counts {
    requests: BTreeMap<&'static str, u64>,
    up_len: u64,
    down_len: u64,
    connections: u64,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    up: Lane,
    down: Lane,
}

struct Relay {
    server: SocketAddr,
    half: Duration,
    pipes: Vec<Pipe>,
    counts: Counts,
    scratch: Vec<u8>,
}

impl Relay {
    fn pipe(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Smaller ones do, too.
        let _ = fcntl_setpipe_size(&write, PIPE_LEN);
        Ok(Pipe { read, write })
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.pipes.len() < IDLE_PIPE_COUNT {
            self.pipes.push(pipe);
        }
    }

    /// Moves what can be moved. An error ends the connection.
    fn pump(&mut self, connection: &mut Connection) -> io::Result<()> {
        let Connection { client, server, up, down } = connection;
        while self.fill(up, client, true)? | self.drain(up, server)? {}
        while self.fill(down, server, false)? | self.drain(down, client)? {}
        Ok(())
    }

    /// Takes one chunk from the source. Returns whether there may be more to do.
    fn fill(&mut self, lane: &mut Lane, source: &TcpStream, is_up: bool) -> io::Result<bool> {
        if !lane.is_readable || lane.has_ended || lane.queued_len >= LANE_LEN_MAX {
            return Ok(false);
        }
        let taken = match &mut lane.parse {
            Parse::Blind => self.splice_in(lane, source, PIPE_LEN),
            &mut Parse::Body(left) => {
                let most = usize::try_from(left).unwrap_or(PIPE_LEN).min(PIPE_LEN);
                self.splice_in(lane, source, most)
            }
            Parse::Head(_) | Parse::Chunked(_) => self.read_in(lane, source),
        };
        let len = match taken {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                lane.is_readable = false;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if len == 0 {
            lane.has_ended = true;
            return Ok(true);
        }
        *(if is_up { &mut self.counts.up_len } else { &mut self.counts.down_len }) += len as u64;
        Ok(true)
    }

    fn splice_in(&mut self, lane: &mut Lane, source: &TcpStream, most: usize) -> io::Result<usize> {
        let pipe = self.pipe()?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(source, None, &pipe.write, None, most, flags) {
            Ok(len) if len > 0 => {
                if let Parse::Body(left) = lane.parse {
                    let left = left - len as u64;
                    lane.parse = if left == 0 { Parse::Head(Vec::new()) } else { Parse::Body(left) };
                }
                lane.push(Load::Pipe { pipe, len }, len, self.half);
                Ok(len)
            }
            other => {
                self.give_back(pipe);
                Ok(other?)
            }
        }
    }

    fn read_in(&mut self, lane: &mut Lane, mut source: &TcpStream) -> io::Result<usize> {
        let len = source.read(&mut self.scratch)?;
        let bytes = self.scratch[..len].to_vec();
        self.parse(lane, &bytes);
        if len > 0 {
            lane.push(Load::Bytes { bytes, at: 0 }, len, self.half);
        }
        Ok(len)
    }

    fn parse(&mut self, lane: &mut Lane, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut lane.parse {
                Parse::Blind => return,
                Parse::Head(head) => {
                    let before = head.len();
                    head.extend_from_slice(bytes);
                    let Some(len) = call::head_len(head) else {
                        if head.len() > HEAD_LEN_MAX {
                            // No HTTP. It is let through.
                            lane.parse = Parse::Blind;
                        }
                        return;
                    };
                    let told = call::head(&head[..len]);
                    *self.counts.requests.entry(told.kind).or_default() += 1;
                    bytes = &bytes[len - before..];
                    lane.parse = match told.body {
                        Body::Known(0) => Parse::Head(Vec::new()),
                        Body::Known(len) => Parse::Body(len),
                        Body::Chunked => Parse::Chunked(Chunks::default()),
                    };
                }
                Parse::Body(left) => {
                    let count = (*left).min(bytes.len() as u64);
                    bytes = &bytes[count as usize..];
                    let left = *left - count;
                    lane.parse = if left == 0 { Parse::Head(Vec::new()) } else { Parse::Body(left) };
                }
                Parse::Chunked(chunks) => {
                    let (count, has_ended) = chunks.take(bytes);
                    bytes = &bytes[count..];
                    if has_ended {
                        lane.parse = Parse::Head(Vec::new());
                    }
                }
            }
        }
    }

    /// Passes one chunk on, or a part of it. Returns whether there may be more to do.
    fn drain(&mut self, lane: &mut Lane, target: &TcpStream) -> io::Result<bool> {
        let Some(chunk) = lane.queue.front_mut() else {
            if lane.has_ended && !lane.is_shut {
                lane.is_shut = true;
                target.shutdown(Shutdown::Write)?;
            }
            return Ok(false);
        };
        if !lane.is_writable || chunk.due > Instant::now() {
            return Ok(false);
        }
        let moved = match &mut chunk.load {
            Load::Bytes { bytes, at } => (&mut &*target).write(&bytes[*at..]),
            Load::Pipe { pipe, len } => {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                splice(&pipe.read, None, target, None, *len, flags).map_err(io::Error::from)
            }
        };
        let count = match moved {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                lane.is_writable = false;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        lane.queued_len -= count;
        let is_done = match &mut chunk.load {
            Load::Bytes { bytes, at } => {
                *at += count;
                *at == bytes.len()
            }
            Load::Pipe { len, .. } => {
                *len -= count;
                *len == 0
            }
        };
        if is_done && let Some(Chunk { load: Load::Pipe { pipe, .. }, .. }) = lane.queue.pop_front() {
            self.give_back(pipe);
        }
        Ok(true)
    }

    fn accept(&mut self, client: TcpStream) -> io::Result<Connection> {
        let server = TcpStream::connect(self.server)?;
        for socket in [&client, &server] {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
        }
        self.counts.connections += 1;
        let now = Instant::now();
        Ok(Connection {
            client,
            server,
            up: Lane::new(Parse::Head(Vec::new()), now + 2 * self.half),
            down: Lane::new(Parse::Blind, now),
        })
    }

    fn obey(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("delay") => {
                let micros: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                self.half = Duration::from_micros(micros) / 2;
                println!("ok");
            }
            Some("take") => {
                let counts = std::mem::take(&mut self.counts);
                let requests: Vec<_> =
                    counts.requests.iter().map(|(kind, count)| format!("\"{kind}\": {count}")).collect();
                println!(
                    "{{\"requests\": {{{}}}, \"up\": {}, \"down\": {}, \"connections\": {}}}",
                    requests.join(", "),
                    counts.up_len,
                    counts.down_len,
                    counts.connections
                );
            }
            _ => println!("?"),
        }
        let _ = io::stdout().flush();
    }
}

/// Passes lines on to the thread that serves, which an eventfd wakes.
fn read_control(lines: mpsc::Sender<Option<String>>, wake: OwnedFd) {
    for line in io::stdin().lock().lines() {
        let is_end = line.is_err();
        let _ = lines.send(line.ok());
        let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
        if is_end {
            return;
        }
    }
    let _ = lines.send(None);
    let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
}

fn main() -> io::Result<()> {
    let server = std::env::args()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "usage: relay ADDRESS:PORT"))?;
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    // A nap that ends 50 us late is a round trip that takes 100 us more. Best effort: not everybody has this file.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");

    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let (sender, lines) = mpsc::channel();
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    epoll::add(&poll, &wake, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
    let waker = wake.try_clone()?;
    std::thread::spawn(move || read_control(sender, waker));
    println!("{}", listener.local_addr()?.port());
    io::stdout().flush()?;

    let mut relay = Relay {
        server,
        half: Duration::ZERO,
        pipes: Vec::new(),
        counts: Counts::default(),
        scratch: vec![0; 256 << 10],
    };
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 128];
    loop {
        let next = connections
            .iter()
            .flatten()
            .flat_map(|connection| [&connection.up, &connection.down])
            .filter(|lane| lane.is_writable)
            .filter_map(|lane| lane.queue.front().map(|chunk| chunk.due))
            .min();
        let timeout = next.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let (ready, _) = match epoll::wait(&poll, &mut events[..], timeout.as_ref()) {
            Ok(found) => found,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &*ready {
            match event.data.u64() {
                LISTENER => {
                    while let Ok((client, _)) = listener.accept() {
                        let Ok(connection) = relay.accept(client) else { continue };
                        let at = connections.iter().position(Option::is_none).unwrap_or(connections.len());
                        for (side, socket) in [(0, connection.client.as_fd()), (1, connection.server.as_fd())] {
                            let data = epoll::EventData::new_u64(2 * at as u64 + side);
                            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
                            epoll::add(&poll, socket, data, flags | epoll::EventFlags::RDHUP)?;
                        }
                        if at == connections.len() {
                            connections.push(None);
                        }
                        connections[at] = Some(connection);
                    }
                }
                CONTROL => {
                    let _ = rustix::io::read(&wake, &mut [0u8; 8]);
                    while let Ok(line) = lines.try_recv() {
                        match line {
                            Some(line) => relay.obey(&line),
                            None => return Ok(()),
                        }
                    }
                }
                data => {
                    let flags = event.flags;
                    let Some(Some(connection)) = connections.get_mut(data as usize / 2) else { continue };
                    let Connection { up, down, .. } = connection;
                    let (inward, outward) = if data % 2 == 0 { (up, down) } else { (down, up) };
                    let is_broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
                    inward.is_readable |=
                        is_broken || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
                    outward.is_writable |= is_broken || flags.contains(epoll::EventFlags::OUT);
                }
            }
        }
        for slot in &mut connections {
            let Some(connection) = slot else { continue };
            let is_over = relay.pump(connection).is_err() || (connection.up.is_shut && connection.down.is_shut);
            if is_over {
                *slot = None;
            }
        }
    }
}
