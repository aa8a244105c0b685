//! What the ways to the kernel cost: the device read by threads that run anywhere, by threads that stay on their CPUs, and rings.
//!
//! ```text
//! cargo run --release -p sandpail-fuse --example transports -- [ROUNDS]
//! ```
//!
//! As root, on a machine that does nothing else, with `/sys/module/fuse/parameters/enable_uring` at `Y` for the rings. A file system
//! that has everything in memory is asked in turn through all of them; the medians of the rounds are printed, each with the
//! processor time of asking and answering.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use sandpail_fuse::{
    Allowed, Attr, Device, Entry, Filesystem, FopenFlags, Handle, InitFlags, Ino, Placement, Read, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Running, Session, Settings, Time, Transport, Wishes,
};

const FILE_LEN: u64 = 4 << 30;
const STREAM_LEN: u64 = 1 << 30;
const PIECE_LEN: usize = 16 << 10;
const OPERATIONS: u32 = 20_000;

/// A directory of files of zeros.
struct Zeros {
    bytes: Vec<u8>,
    /// Who answers reads of `elsewhere`.
    elsewhere: Sender<(Read, ReplyData)>,
}

const CACHED: Ino = Ino(2);
const DIRECT: Ino = Ino(3);
const ELSEWHERE: Ino = Ino(4);
const UNKNOWN: Ino = Ino(5);

fn attr(ino: Ino) -> Attr {
    let (mode, size) = if ino == Ino::ROOT { (0o040_755, 0) } else { (0o100_644, FILE_LEN) };
    let (time, links) = (Time::default(), 1);
    let (blocks, uid, gid, device, block_len) = (1, 0, 0, 0, 4096);
    Attr { ino, size, blocks, atime: time, mtime: time, ctime: time, mode, links, uid, gid, device, block_len }
}

/// Nothing may be believed of `unknown`.
fn ttl(ino: Ino) -> Duration {
    if ino == UNKNOWN { Duration::ZERO } else { Duration::from_secs(600) }
}

fn answer(bytes: &[u8], read: Read, reply: ReplyData) {
    let len = usize::try_from(read.len).unwrap_or(usize::MAX).min(bytes.len());
    reply.chain(&bytes[..len].chunks(PIECE_LEN).collect::<Vec<_>>());
}

impl Filesystem for Zeros {
    fn lookup(&self, _request: &Request, name: &[u8], reply: ReplyEntry) {
        let ino = match name {
            b"cached" => CACHED,
            b"direct" => DIRECT,
            b"elsewhere" => ELSEWHERE,
            _ => UNKNOWN,
        };
        reply.entry(Entry { attr: attr(ino), generation: 0, ttl: ttl(ino) });
    }

    fn getattr(&self, request: &Request, _handle: Option<Handle>, reply: ReplyAttr) {
        reply.attr(ttl(request.ino()), attr(request.ino()));
    }

    fn open(&self, request: &Request, _flags: u32, reply: ReplyOpen) {
        let direct_io = request.ino() != CACHED;
        reply.opened(Handle(request.ino().0), FopenFlags { direct_io, no_flush: true, ..FopenFlags::default() });
    }

    fn read(&self, _request: &Request, read: Read, reply: ReplyData) {
        if read.handle.0 == ELSEWHERE.0 {
            // If nobody is there the reply is dropped, and says so.
            let _ = self.elsewhere.send((read, reply));
        } else {
            answer(&self.bytes, read, reply);
        }
    }

    fn release(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// A mount that is attached nowhere but at a descriptor.
struct Mount {
    place: OwnedFd,
    running: Running,
}

impl Mount {
    fn new(placement: Placement, transport: Transport) -> io::Result<Self> {
        let device = Device::open()?;
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let options = [("fd", device.as_fd().as_raw_fd().to_string()), ("rootmode", "40000".to_owned())];
        for (key, value) in options.into_iter().chain([("user_id", "0".to_owned()), ("group_id", "0".to_owned())]) {
            rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let place = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
        let flags = InitFlags::PARALLEL_DIROPS | InitFlags::ASYNC_DIO;
        let (len, background) = (1 << 20, 64);
        let wishes =
            Wishes { flags, max_write: len, max_readahead: len, max_background: background, max_stack_depth: 0 };
        let settings = Settings { wishes, allowed: Allowed::All, threads: 2, placement, transport };
        let (elsewhere, asked) = channel();
        std::thread::spawn(move || {
            let bytes = vec![0; 1 << 20];
            while let Ok((read, reply)) = asked.recv() {
                answer(&bytes, read, reply);
            }
        });
        let running = Session::start(Zeros { bytes: vec![0; 1 << 20], elsewhere }, device, settings)?.spawn()?;
        let minor = rustix::fs::minor(rustix::fs::fstat(&place)?.st_dev);
        std::fs::write(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"), "1024")?;
        Ok(Self { place, running })
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.place.as_raw_fd())
    }
}

/// Does something many times as one client of several; says how often.
type Work = fn(&Mount, u32) -> io::Result<u32>;

fn random_reads(mount: &Mount, name: &str, client: u32, len: u32) -> io::Result<u32> {
    let file = File::open(mount.path(name))?;
    let mut buffer = vec![0; usize::try_from(len).unwrap_or_default()];
    let mut state = u64::from(client) + 1;
    for _ in 0..OPERATIONS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        file.read_exact_at(&mut buffer, ((state >> 33) % (FILE_LEN >> 12)) << 12)?;
    }
    Ok(OPERATIONS)
}

fn stream(mount: &Mount, name: &str) -> io::Result<u32> {
    let file = File::open(mount.path(name))?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < STREAM_LEN {
        offset += u64::try_from(file.read_at(&mut buffer, offset)?).unwrap_or_default();
    }
    // What the kernel has kept would be read without asking.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(u32::try_from(STREAM_LEN >> 20).unwrap_or_default())
}

const WORKS: [(&str, u32, Work); 10] = [
    ("4 KiB at random, 1 client", 1, |mount, client| random_reads(mount, "direct", client, 4096)),
    ("4 KiB at random, 4 clients", 4, |mount, client| random_reads(mount, "direct", client, 4096)),
    ("the same, answered by another thread, 1 client", 1, |mount, client| {
        random_reads(mount, "elsewhere", client, 4096)
    }),
    ("the same, 4 clients", 4, |mount, client| random_reads(mount, "elsewhere", client, 4096)),
    ("stat, 1 client", 1, stats),
    ("stat, 4 clients", 4, stats),
    ("open, read 4 KiB, close", 1, |mount, _| {
        let mut buffer = [0; 4096];
        for _ in 0..OPERATIONS {
            File::open(mount.path("direct"))?.read_exact_at(&mut buffer, 0)?;
        }
        Ok(OPERATIONS)
    }),
    ("MiB of a stream, read ahead", 1, |mount, _| stream(mount, "cached")),
    ("MiB of a stream, direct", 1, |mount, _| stream(mount, "direct")),
    ("MiB of a stream, direct, another thread", 1, |mount, _| stream(mount, "elsewhere")),
];

fn stats(mount: &Mount, _client: u32) -> io::Result<u32> {
    let path = mount.path("unknown");
    for _ in 0..OPERATIONS {
        std::fs::metadata(&path)?;
    }
    Ok(OPERATIONS)
}

/// Operations a second, and processor microseconds for each.
fn measure(mount: &Mount, clients: u32, work: Work) -> io::Result<(f64, f64)> {
    let (began, before) = (Instant::now(), processor_seconds());
    let done = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|client| scope.spawn(move || work(mount, client))).collect();
        clients.into_iter().map(|client| client.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))).sum()
    });
    let (done, passed, spent): (io::Result<u32>, _, _) = (done, began.elapsed(), processor_seconds() - before);
    let done = f64::from(done?);
    Ok((done / passed.as_secs_f64(), spent / done * 1e6))
}

/// Of the asking and the answering threads, which are all of this process.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default()).as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What this process has in memory, in MiB.
fn resident() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() >> 10)
}

fn main() -> io::Result<()> {
    let rounds = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(5);
    let ways = [
        ("device", Placement::Anywhere, Transport::Device),
        ("device, pinned", Placement::OneCpuEach, Transport::Device),
        ("ring", Placement::Anywhere, Transport::Ring),
    ];
    let mut mounts = Vec::new();
    for (name, placement, transport) in ways {
        let before = resident()?;
        let mount = Mount::new(placement, transport)?;
        println!("{name}: {} MiB", resident()? - before);
        match mount.running.why_device() {
            Some(why) => println!("{name}: {why}"),
            None => mounts.push((name, mount)),
        }
    }
    println!("\n{:<46} {:<15} {:>10} {:>8}", "", "", "a second", "CPU us");
    for (work_name, clients, work) in WORKS {
        let mut measured = vec![(Vec::new(), Vec::new()); mounts.len()];
        for _ in 0..rounds {
            for ((_, mount), (rates, costs)) in mounts.iter().zip(&mut measured) {
                let (rate, cost) = measure(mount, clients, work)?;
                rates.push(rate);
                costs.push(cost);
            }
        }
        for ((name, _), (rates, costs)) in mounts.iter().zip(measured) {
            println!("{work_name:<46} {name:<15} {:>10.0} {:>8.1}", median(rates), median(costs));
        }
    }
    println!("\nin memory: {} MiB", resident()?);
    for (_, Mount { place, running }) in mounts {
        drop(place);
        running.join()?;
    }
    Ok(())
}
