//! From an open device to a served file system, and to its end.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use zerocopy::IntoBytes;

use crate::abi::READ_BUFFER_LEN_MIN;
use crate::init::{Answer, answer};
use crate::message::send;
use crate::request::{Dialect, Operation, parse};
use crate::serve::Server;
use crate::{Agreed, Device, Errno, Filesystem, Wishes};

/// Who may use a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Everybody; the kernel was told so, too, by `allow_other`.
    All,
    /// The user whose process serves it.
    Owner,
}

/// Where the serving threads run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Where the kernel puts them.
    #[default]
    Anywhere,
    /// The first thread on the first CPU that this process may use, the second on the second, and so on, from the start again
    /// when there are more threads. A wake-up then costs the same each time, good or bad: `examples/placement.rs` measures both,
    /// on a machine that does nothing else.
    OneCpuEach,
}

/// How a file system is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the kernel is asked for. A process that takes a mount up must ask for what the process before it has.
    pub wishes: Wishes,
    /// Who may use it.
    pub allowed: Allowed,
    /// Threads that read requests.
    pub threads: usize,
    /// Where they run.
    pub placement: Placement,
}

/// A device on which the hello was said; nobody reads from it yet.
#[derive(Debug)]
pub struct Session<F> {
    filesystem: F,
    device: Device,
    agreed: Agreed,
    settings: Settings,
}

/// A file system that is served.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl<F> Session<F> {
    /// Waits for the kernel's hello on a device that was just mounted, and answers.
    ///
    /// # Errors
    /// What the device says; `NotConnected` if the file system is gone; `InvalidData` if something else than a hello comes;
    /// `Unsupported` if the kernel is too old.
    pub fn start(filesystem: F, device: Device, settings: Settings) -> io::Result<Self> {
        let agreed = hello(&device, &settings.wishes)?;
        tracing::debug!(?agreed, "the kernel has said hello");
        Ok(Self { filesystem, device, agreed, settings })
    }

    /// Takes up a device whose kernel was answered by a process that has ended, and had the same wishes. What that process
    /// had read and not answered comes again after [`resend`](crate::resend).
    pub fn take_up(filesystem: F, device: Device, settings: Settings) -> Self {
        let agreed = Agreed::by_another(&settings.wishes);
        Self { filesystem, device, agreed, settings }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What holds for this mount; after [`Session::take_up`] what the process before must have agreed to if the kernel
    /// offered all.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }
}

impl<F: Filesystem> Session<F> {
    /// Begins to serve.
    ///
    /// # Errors
    /// If a thread cannot be made. Those before it serve until the file system is gone.
    pub fn spawn(self) -> io::Result<Running> {
        let Self { filesystem, device, agreed, settings } = self;
        let owner = match settings.allowed {
            Allowed::All => None,
            Allowed::Owner => Some(rustix::process::geteuid().as_raw()),
        };
        let filesystem = Arc::new(filesystem);
        let spawn = |number: usize| {
            let (filesystem, device) = (Arc::clone(&filesystem), device.clone());
            let server = Server { filesystem, device, agreed, owner };
            let place = move || {
                if settings.placement == Placement::OneCpuEach {
                    stay_on_cpu(number);
                }
                server.run()
            };
            std::thread::Builder::new().name(format!("fuse-{number}")).spawn(place)
        };
        let threads = (0..settings.threads).map(spawn).collect::<io::Result<_>>()?;
        Ok(Running { threads })
    }
}

impl Running {
    /// Waits until the file system is gone, whoever unmounts it.
    ///
    /// # Errors
    /// What ended the first of the threads that did not end well.
    pub fn join(self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.threads {
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("a serving thread has panicked")));
            result = result.and(ended);
        }
        result
    }
}

/// This thread runs on one CPU of those that it may use from now on. If that cannot be had it runs anywhere.
fn stay_on_cpu(number: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let stay = || {
        let usable = sched_getaffinity(None)?;
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| usable.is_set(cpu)).collect();
        let mut one = CpuSet::new();
        one.set(*cpus.get(number % cpus.len().max(1)).ok_or(Errno::INVAL)?);
        sched_setaffinity(None, &one)
    };
    if let Err(error) = stay() {
        tracing::debug!(%error, "a serving thread runs anywhere");
    }
}

fn hello(device: &Device, wishes: &Wishes) -> io::Result<Agreed> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut buffer = vec![0; READ_BUFFER_LEN_MIN];
    loop {
        let Some(len) = device.receive(&mut buffer)? else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the file system has gone before it was served"));
        };
        let Some((request, operation)) = parse(&buffer[..len], Dialect::default()) else {
            return Err(invalid("the device has given what is no request"));
        };
        let Ok(Operation::Init(offer)) = operation else {
            send::<&[u8]>(device, -Errno::IO.raw_os_error(), request.unique(), &[])?;
            return Err(invalid("the kernel has not said hello"));
        };
        match answer(&offer, wishes) {
            Answer::Agreed(out, agreed) => {
                send(device, 0, request.unique(), &[out.as_bytes()])?;
                return Ok(agreed);
            }
            Answer::Older(out) => send(device, 0, request.unique(), &[out.as_bytes()])?,
            Answer::Refused(error) => {
                send::<&[u8]>(device, -error.raw_os_error(), request.unique(), &[])?;
                let what = format!("the kernel speaks version {}.{} of FUSE", offer.major, offer.minor);
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
