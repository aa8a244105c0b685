//! The kernel's hello: what it can do, what we ask for, and what is agreed.
//!
//! It is said once for each mount. A process that takes a mount up was not there; it holds what the process before it had
//! asked for, so whatever changes how messages look or how large they are must be asked for by all versions of this program
//! alike. Those are `max_write` (the buffer must hold it) and [`InitFlags::SETXATTR_EXT`] (never asked for). All else changes
//! only what the kernel asks, and is served either way.
//!
//! Mounts made by versions of this program that were built on the `fuser` crate differ in one thing: they have not asked for
//! [`InitFlags::PASSTHROUGH`], so that the kernel refuses to register a backing file, with `EPERM`.
//! [`Device::open_backing`](crate::Device::open_backing) remembers that.

use std::ops::BitOr;

use crate::Errno;
use crate::abi::{self, InitOut};
use crate::request::{Dialect, Offer};

/// `FUSE_…` of the hello; see `linux/fuse.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitFlags(u64);

impl InitFlags {
    /// Several reads of one handle at once.
    pub const ASYNC_READ: Self = Self(1);
    /// `O_TRUNC` comes with the open.
    pub const ATOMIC_O_TRUNC: Self = Self(1 << 3);
    /// Writes of more than a page.
    pub const BIG_WRITES: Self = Self(1 << 5);
    /// Cached pages go when size or mtime change.
    pub const AUTO_INVAL_DATA: Self = Self(1 << 12);
    /// Listings with attributes.
    pub const DO_READDIRPLUS: Self = Self(1 << 13);
    /// Only where they seem to be wanted.
    pub const READDIRPLUS_AUTO: Self = Self(1 << 14);
    /// Direct reads and writes in several requests at once.
    pub const ASYNC_DIO: Self = Self(1 << 15);
    /// Lookups and listings of one directory at once.
    pub const PARALLEL_DIROPS: Self = Self(1 << 18);
    /// `max_pages` is in the answer.
    pub const MAX_PAGES: Self = Self(1 << 22);
    /// Targets of links are kept.
    pub const CACHE_SYMLINKS: Self = Self(1 << 23);
    /// The file system takes set-id bits away.
    pub const HANDLE_KILLPRIV_V2: Self = Self(1 << 28);
    /// `SETXATTR` has a longer header.
    pub const SETXATTR_EXT: Self = Self(1 << 29);
    /// There is a second word of flags.
    pub const INIT_EXT: Self = Self(1 << 30);
    /// Files that are read directly can be mapped.
    pub const DIRECT_IO_ALLOW_MMAP: Self = Self(1 << 36);
    /// The kernel serves backing files by itself.
    pub const PASSTHROUGH: Self = Self(1 << 37);
    /// Requests come by a ring. Not to be wished for: it goes with [`Transport::Ring`](crate::Transport::Ring).
    pub(crate) const OVER_IO_URING: Self = Self(1 << 41);

    /// The kernel's bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `others` are there.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl BitOr for InitFlags {
    type Output = Self;

    fn bitor(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

/// What a file system asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Each alone: one that the kernel lacks does not cost the others.
    pub flags: InitFlags,
    /// The most data of one request, in bytes; also of a read, where the kernel has [`InitFlags::MAX_PAGES`].
    pub max_write: u32,
    /// What the kernel reads ahead of a program at most, in bytes. It takes no more than it offers.
    pub max_readahead: u32,
    /// Requests that the kernel sends ahead of answers.
    pub max_background: u16,
    /// How deep file systems may be stacked: with [`InitFlags::PASSTHROUGH`], 1 if backing files are on plain ones.
    pub max_stack_depth: u32,
}

/// What holds for a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// What was asked for and is offered.
    pub flags: InitFlags,
    /// The most data of one write, in bytes.
    pub max_write: u32,
}

impl Wishes {
    /// The most that stands in one request, or in the answer to one, besides headers and structures; in bytes.
    pub(crate) fn payload_len_max(&self) -> usize {
        let pages = usize::from(pages(self.max_write.max(self.max_readahead)));
        let write = usize::try_from(self.max_write).unwrap_or(usize::MAX);
        (pages * page_len()).max(write).max(abi::READ_BUFFER_LEN_MIN)
    }
}

/// What is asked for anyway.
const ALWAYS: InitFlags =
    InitFlags(InitFlags::ASYNC_READ.0 | InitFlags::BIG_WRITES.0 | InitFlags::MAX_PAGES.0 | InitFlags::INIT_EXT.0);

impl Agreed {
    /// What a process that asked for `wishes` has agreed to, as far as that matters to another one: everything.
    pub(crate) fn by_another(wishes: &Wishes) -> Self {
        Self { flags: wishes.flags | ALWAYS, max_write: wishes.max_write }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        Dialect { long_setxattr: self.flags.contains(InitFlags::SETXATTR_EXT) }
    }

    /// What a buffer for any request must hold, in bytes.
    pub(crate) fn buffer_len(&self) -> usize {
        let data_len = usize::try_from(self.max_write).unwrap_or(usize::MAX);
        data_len.saturating_add(page_len()).max(abi::READ_BUFFER_LEN_MIN)
    }
}

/// What is said to the hello of a kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This, and from then on it holds.
    Agreed(Box<InitOut>, Agreed),
    /// Only our version: the kernel is newer than that, and will say hello again with an older one.
    Older(Box<InitOut>),
    /// The kernel is too old.
    Refused(Errno),
}

pub(crate) fn answer(offer: &Offer, wishes: &Wishes) -> Answer {
    let version = InitOut { major: abi::MAJOR, minor: abi::MINOR, ..InitOut::default() };
    if offer.major > abi::MAJOR {
        return Answer::Older(Box::new(version));
    }
    if (offer.major, offer.minor) < (abi::MAJOR, abi::MINOR_MIN) {
        return Answer::Refused(Errno::PROTO);
    }
    let flags = InitFlags((wishes.flags | ALWAYS).0 & offer.flags);
    let max_readahead = wishes.max_readahead.min(offer.max_readahead);
    let out = InitOut {
        max_readahead,
        flags: low(flags.0),
        flags2: low(flags.0 >> 32),
        max_background: wishes.max_background,
        // Above this the kernel thinks the device congested, and reads less ahead.
        congestion_threshold: u16::try_from(u32::from(wishes.max_background) * 3 / 4).unwrap_or(u16::MAX),
        max_write: wishes.max_write,
        // Nanoseconds.
        time_gran: 1,
        max_pages: pages(wishes.max_write.max(max_readahead)),
        max_stack_depth: if flags.contains(InitFlags::PASSTHROUGH) { wishes.max_stack_depth } else { 0 },
        ..version
    };
    Answer::Agreed(Box::new(out), Agreed { flags, max_write: wishes.max_write })
}

fn low(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default()
}

fn pages(len: u32) -> u16 {
    let pages = usize::try_from(len).unwrap_or(usize::MAX).div_ceil(page_len());
    u16::try_from(pages).unwrap_or(u16::MAX)
}

pub(crate) fn page_len() -> usize {
    rustix::param::page_size()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: Wishes = Wishes {
        flags: InitFlags(InitFlags::PASSTHROUGH.0 | InitFlags::PARALLEL_DIROPS.0),
        max_write: 1 << 20,
        max_readahead: 1 << 20,
        max_background: 64,
        max_stack_depth: 1,
    };

    #[track_caller]
    fn agreed(offer: Offer) -> (InitOut, Agreed) {
        match answer(&offer, &WISHES) {
            Answer::Agreed(out, agreed) => (*out, agreed),
            other => panic!("{offer:?}: {other:?}"),
        }
    }

    #[test]
    fn what_is_offered_and_wished_is_agreed() {
        let all = Offer { major: 7, minor: 45, max_readahead: 128 << 10, flags: u64::MAX };
        let (out, agreement) = agreed(all);
        assert_eq!((out.major, out.minor), (7, 40));
        assert_eq!(agreement, Agreed::by_another(&WISHES), "a process that takes the mount up believes the same");
        assert_eq!(u64::from(out.flags) | u64::from(out.flags2) << 32, agreement.flags.bits());
        assert_eq!((out.max_write, out.max_readahead, out.max_stack_depth), (1 << 20, 128 << 10, 1));
        assert_eq!(usize::from(out.max_pages), (1 << 20) / page_len());
        assert_eq!((out.max_background, out.congestion_threshold), (64, 48));

        let (out, agreement) = agreed(Offer { flags: all.flags & !InitFlags::PASSTHROUGH.0, ..all });
        assert!(!agreement.flags.contains(InitFlags::PASSTHROUGH));
        assert!(agreement.flags.contains(InitFlags::PARALLEL_DIROPS), "one that is lacking does not cost the others");
        assert_eq!(out.max_stack_depth, 0);
    }

    #[test]
    fn versions() {
        let offer = |major, minor| answer(&Offer { major, minor, max_readahead: 0, flags: 0 }, &WISHES);
        assert!(matches!(offer(7, 23), Answer::Agreed(..)));
        assert_eq!(offer(7, 22), Answer::Refused(Errno::PROTO));
        assert_eq!(offer(6, 99), Answer::Refused(Errno::PROTO));
        assert!(matches!(offer(8, 0), Answer::Older(out) if out.major == 7 && out.flags == 0));
    }

    #[test]
    fn the_buffer_holds_a_write_and_its_headers() {
        let agreement = Agreed::by_another(&WISHES);
        assert!(agreement.buffer_len() >= (1 << 20) + size_of::<abi::InHeader>() + size_of::<abi::WriteIn>());
        assert_eq!(Agreed { max_write: 1, ..agreement }.buffer_len(), abi::READ_BUFFER_LEN_MIN);
    }
}
