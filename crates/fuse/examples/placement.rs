//! What the transport costs by itself: a file of zeros, served from memory in pieces of 16 KiB, read as a stream and at random.
//!
//! ```text
//! cargo run --release -p sandpail-fuse --example placement -- [THREADS]
//! ```
//!
//! As root, on a machine that does nothing else. For each placement of the serving threads: GiB/s and CPU seconds for each GiB of
//! a stream read in 1 MiB calls, and reads of 4 KiB a second and CPU microseconds for each of them, past the page cache.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use sandpail_fuse::{
    Allowed, Attr, Device, Entry, Filesystem, FopenFlags, Handle, InitFlags, Ino, Placement, Read, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session, Settings, Time, Transport, Wishes,
};

const FILE_LEN: u64 = 4 << 30;
const STREAM_LEN: u64 = 2 << 30;
const READS: u32 = 50_000;
const PIECE_LEN: usize = 16 << 10;
const ROUNDS: u32 = 3;

struct Zeros(Vec<u8>);

impl Zeros {
    fn attr(ino: Ino) -> Attr {
        let (mode, size) = if ino == Ino::ROOT { (0o040_755, 0) } else { (0o100_644, FILE_LEN) };
        let (time, links) = (Time::default(), 1);
        Attr {
            ino,
            size,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            mode,
            links,
            uid: 0,
            gid: 0,
            device: 0,
            block_len: 4096,
        }
    }
}

impl Filesystem for Zeros {
    fn lookup(&self, _request: &Request, name: &[u8], reply: ReplyEntry) {
        // Inode 2 is read through the page cache, 3 past it.
        let ino = if name == b"direct" { Ino(3) } else { Ino(2) };
        reply.entry(Entry { attr: Self::attr(ino), generation: 0, ttl: Duration::from_secs(600) });
    }

    fn getattr(&self, request: &Request, _handle: Option<Handle>, reply: ReplyAttr) {
        reply.attr(Duration::from_secs(600), Self::attr(request.ino()));
    }

    fn open(&self, request: &Request, _flags: u32, reply: ReplyOpen) {
        reply.opened(Handle(1), FopenFlags { direct_io: request.ino() == Ino(3), ..FopenFlags::default() });
    }

    fn read(&self, _request: &Request, read: Read, reply: ReplyData) {
        let len = usize::try_from(read.len).unwrap_or(usize::MAX).min(self.0.len());
        reply.chain(&self.0[..len].chunks(PIECE_LEN).collect::<Vec<_>>());
    }

    fn release(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.ok();
    }
}

fn main() -> io::Result<()> {
    let threads = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(2);
    println!("{:<12} {:>8} {:>10} {:>10} {:>8}", "placement", "GiB/s", "CPU s/GiB", "4 KiB/s", "CPU us");
    for _ in 0..ROUNDS {
        for placement in [Placement::Anywhere, Placement::OneCpuEach] {
            measure(placement, threads)?;
        }
    }
    Ok(())
}

fn measure(placement: Placement, threads: usize) -> io::Result<()> {
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
    let wishes = Wishes { flags, max_write: 1 << 20, max_readahead: 1 << 20, max_background: 64, max_stack_depth: 0 };
    let settings = Settings { wishes, allowed: Allowed::All, threads, placement, transport: Transport::Device };
    let running = Session::start(Zeros(vec![0; 1 << 20]), device, settings)?.spawn()?;
    let minor = rustix::fs::minor(rustix::fs::fstat(&place)?.st_dev);
    std::fs::write(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"), "1024")?;

    let path = |name: &str| format!("/proc/self/fd/{}/{name}", place.as_raw_fd());
    let cached = File::open(path("cached"))?;
    let mut buffer = vec![0; 1 << 20];
    let (stream, stream_cpu) = timed(|| {
        let mut offset = 0;
        while offset < STREAM_LEN {
            offset += u64::try_from(cached.read_at(&mut buffer, offset)?).unwrap_or_default();
        }
        Ok(())
    })?;
    let direct = File::open(path("direct"))?;
    let (random, random_cpu) = timed(|| {
        let mut state = 1u64;
        for _ in 0..READS {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            direct.read_exact_at(&mut buffer[..4096], ((state >> 33) % (FILE_LEN >> 12)) << 12)?;
        }
        Ok(())
    })?;
    let gib = f64::from(u32::try_from(STREAM_LEN >> 20).unwrap_or_default()) / 1024.0;
    let name = format!("{placement:?}");
    let (rate, each) = (f64::from(READS) / random, random_cpu / f64::from(READS) * 1e6);
    println!("{name:<12} {:>8.2} {:>10.3} {rate:>10.0} {each:>8.1}", gib / stream, stream_cpu / gib);
    drop((cached, direct, place));
    running.join()
}

/// Seconds that passed, and processor seconds of reader and server, user's and system's.
fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<(f64, f64)> {
    let (began, before) = (Instant::now(), processor_seconds());
    work()?;
    Ok((began.elapsed().as_secs_f64(), processor_seconds() - before))
}

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default()).as_secs_f64()
}
