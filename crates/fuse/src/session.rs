//! From an open device to a served file system, and to its end.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use zerocopy::IntoBytes;

use crate::abi::{MINOR_WITH_RINGS, READ_BUFFER_LEN_MIN};
use crate::init::{Answer, answer};
use crate::message::send;
use crate::request::{Dialect, Operation, parse};
use crate::ring::Prepared;
use crate::serve::Server;
use crate::{Agreed, Device, Errno, Filesystem, InitFlags, WhyDevice, Wishes};

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

/// By which way requests come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// They are read from the device.
    #[default]
    Device,
    /// By a ring for each CPU (Linux 6.14, where an administrator has switched it on), and by the device where that cannot be had.
    ///
    /// **For mounts that need not survive their process, and that nobody keeps.** If another process holds the device when this one is
    /// killed, what was asked of this one is never answered, and is not sent again; whoever asks later waits. A kept mount of this kind
    /// can only be aborted, and [`Session::take_up`] on it would hear nothing. If nobody holds the device all who wait get an
    /// error at once, `ECONNABORTED` or `ECANCELED`.
    ///
    /// There is one serving thread for each CPU: a method of the file system that blocks holds up those who ask on the same CPU.
    /// An answer that is given in the method goes out when that returns.
    Ring,
}

/// How a file system is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the kernel is asked for. A process that takes a mount up must ask for what the process before it has.
    pub wishes: Wishes,
    /// Who may use it.
    pub allowed: Allowed,
    /// Threads that read requests from the device. By a ring there is one thread for each CPU, one more, and one for the device.
    pub threads: usize,
    /// Where those that read from the device run.
    pub placement: Placement,
    /// By which way requests are wished to come.
    pub transport: Transport,
}

/// A device on which the hello was said; nobody reads from it yet.
#[derive(Debug)]
pub struct Session<F> {
    filesystem: F,
    device: Device,
    agreed: Agreed,
    settings: Settings,
    /// If a ring was wished for, and is agreed on, or why it is not.
    pub(crate) ring: Option<Result<Prepared, WhyDevice>>,
}

/// A file system that is served.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<io::Result<()>>>,
    transport: Transport,
    why_device: Option<WhyDevice>,
}

impl<F> Session<F> {
    /// Waits for the kernel's hello on a device that was just mounted, and answers.
    ///
    /// # Errors
    /// What the device says; `NotConnected` if the file system is gone; `InvalidData` if something else than a hello comes;
    /// `Unsupported` if the kernel is too old.
    pub fn start(filesystem: F, device: Device, settings: Settings) -> io::Result<Self> {
        // All that can be lacking is there before the kernel is told: from then on it lets callers wait for the ring.
        let ring = match settings.transport {
            Transport::Device => None,
            Transport::Ring => Some(Prepared::new(&device, &settings.wishes)),
        };
        let mut wishes = settings.wishes;
        if let Some(Ok(_)) = ring {
            wishes.flags = wishes.flags | InitFlags::OVER_IO_URING;
        }
        let (agreed, minor) = hello(&device, &wishes)?;
        tracing::debug!(?agreed, "the kernel has said hello");
        let ring = ring.map(|ring| match ring {
            Ok(_) if agreed.flags.contains(InitFlags::OVER_IO_URING) => ring,
            Ok(_) if minor >= MINOR_WITH_RINGS => Err(WhyDevice::SwitchedOff),
            Ok(_) => Err(WhyDevice::Unknown),
            why => why,
        });
        Ok(Self { filesystem, device, agreed, settings, ring })
    }

    /// Takes up a device whose kernel was answered by a process that has ended, and had the same wishes. What that process
    /// had read and not answered comes again after [`resend`](crate::resend).
    ///
    /// Not for a mount that was served by rings, whose requests do not come by the device any more: see [`Transport::Ring`].
    pub fn take_up(filesystem: F, device: Device, settings: Settings) -> Self {
        let agreed = Agreed::by_another(&settings.wishes);
        let ring = (settings.transport == Transport::Ring).then_some(Err(WhyDevice::TakenUp));
        Self { filesystem, device, agreed, settings, ring }
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

    /// By which way requests will come, as far as is agreed: [`Running::transport`] is certain.
    pub fn transport(&self) -> Transport {
        if let Some(Ok(_)) = self.ring { Transport::Ring } else { Transport::Device }
    }

    /// Why it is not a ring, if one was wished for.
    pub fn why_device(&self) -> Option<WhyDevice> {
        self.ring.as_ref().and_then(|ring| ring.as_ref().err().copied())
    }
}

impl<F: Filesystem> Session<F> {
    /// Begins to serve.
    ///
    /// # Errors
    /// If a thread cannot be made. Those before it serve until the file system is gone.
    pub fn spawn(self) -> io::Result<Running> {
        let Self { filesystem, device, agreed, settings, ring } = self;
        let owner = match settings.allowed {
            Allowed::All => None,
            Allowed::Owner => Some(rustix::process::geteuid().as_raw()),
        };
        let server = Arc::new(Server { filesystem, device, agreed, owner });
        let ring = ring.map(|ring| ring?.spawn(&server));
        // What still comes by the device is seldom and short.
        let mut ending = if let Some(Ok(serving)) = &ring { Some(serving.ending()) } else { None };
        let count = if ending.is_some() { 1 } else { settings.threads };
        let mut threads = Vec::new();
        for number in 0..count {
            let (server, ending) = (Arc::clone(&server), ending.take());
            let place = move || {
                if settings.placement == Placement::OneCpuEach && ending.is_none() {
                    stay_on_cpu(number);
                }
                let ended = server.run();
                // Otherwise it is only this thread that has failed.
                if ended.is_ok() {
                    ending.into_iter().for_each(|end| end());
                }
                ended
            };
            threads.push(std::thread::Builder::new().name(format!("fuse-{number}")).spawn(place)?);
        }
        let (transport, why_device) = match ring {
            Some(Ok(serving)) => {
                threads.extend(serving.threads);
                (Transport::Ring, None)
            }
            Some(Err(why)) => (Transport::Device, Some(why)),
            None => (Transport::Device, None),
        };
        if let Some(why) = why_device {
            tracing::debug!(%why, "served by the device");
        }
        Ok(Running { threads, transport, why_device })
    }
}

impl Running {
    /// By which way requests come.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Why it is not a ring, if one was wished for.
    pub fn why_device(&self) -> Option<WhyDevice> {
        self.why_device
    }

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

/// This thread runs on one CPU of those that it may use from now on, the first, the second and so on.
fn stay_on_cpu(number: usize) {
    let cpus = usable_cpus();
    if let Some(&cpu) = cpus.get(number % cpus.len().max(1)) {
        stay_on(cpu);
    }
}

/// The CPUs that this thread may use. None if the kernel does not say.
pub(crate) fn usable_cpus() -> Vec<usize> {
    let usable = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|&cpu| usable.is_set(cpu)).collect()
}

/// This thread runs on one CPU from now on. If that cannot be had it runs anywhere.
pub(crate) fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu);
    if let Err(error) = sched_setaffinity(None, &one) {
        tracing::debug!(%error, "a serving thread runs anywhere");
    }
}

/// What was agreed, and the version that the kernel speaks.
fn hello(device: &Device, wishes: &Wishes) -> io::Result<(Agreed, u32)> {
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
                return Ok((agreed, offer.minor));
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
