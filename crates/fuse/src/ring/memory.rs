//! The memory that the kernel and we write by turns, and the commands that hand it over: all `unsafe` code of the ring.
//!
//! A [`Slot`] is an entry's memory while it is ours: nobody else has it, it can be given to another thread, and it keeps the memory
//! mapped. [`Commands`] takes slots when they are lent to the kernel and gives them back when the kernel has. So what must hold
//! for the kernel's writing is held by ownership: a slot that it may write to is in nobody else's hands.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::abi::{InHeader, OutHeader, RingCommand, RingInOut, Span, ring};
use crate::init::page_len;
use crate::{Device, Errno};

/// What stands before each payload. The kernel's part is the first three fields.
#[repr(C)]
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head {
    in_out: [u8; 128],
    structure: [u8; 128],
    entry: RingInOut,
    /// Read by the kernel when the entry is registered: where the head is, and the payload.
    spans: [Span; 2],
}

/// What of it the kernel knows, in bytes.
const KERNEL_HEAD_LEN: usize = 128 + 128 + size_of::<RingInOut>();
/// From one head to the next, in bytes.
const HEAD_STRIDE: usize = 512;
const _: () = assert!(size_of::<Head>() <= HEAD_STRIDE && align_of::<Head>() <= 8);

/// A payload that holds more than this, in bytes, has grown.
const GROWN_LEN: usize = 64 << 10;
/// Slots that have grown shrink when their thread has had nothing to do for so long,
const SHRINKS_AFTER: types::Timespec = types::Timespec::new().sec(1);
/// or has waited so often while none grew: they are not needed for what it does.
const SHRINKS_AFTER_WAITS: u32 = 10_000;

/// Memory of some slots, mapped until the last of them is gone.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is only an address and a length; what is there is reached through slots, each of which has its own part.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this was mapped by `slots` with this length, and no slot is left. A slot that the kernel may still write to is
        // never dropped (see `Drop` of `Commands`).
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "memory of a ring stays mapped");
        }
    }
}

/// One entry of a queue: a head and a payload, zeros at first, whose pages are there once they were written to.
#[derive(Debug)]
pub(super) struct Slot {
    /// Keeps what the pointers point to.
    _map: Arc<Map>,
    head: NonNull<Head>,
    payload: NonNull<u8>,
    payload_len: usize,
    /// Among all of the ring.
    number: usize,
    queue: u16,
    /// Names the request that is in it; 0 before the first.
    commit: u64,
    /// Much of the payload has been written to, and takes room.
    is_grown: bool,
}

// SAFETY: the memory belongs to the slot alone, whatever thread has it.
unsafe impl Send for Slot {}

/// Makes `count` entries of `queue`, numbered from `first`.
///
/// # Errors
/// `ENOMEM`, mostly.
pub(super) fn slots(first: usize, count: usize, queue: u16, payload_len: usize) -> rustix::io::Result<Vec<Slot>> {
    let payload_len = payload_len.next_multiple_of(page_len());
    let heads_len = (HEAD_STRIDE * count).next_multiple_of(page_len());
    let len = payload_len.checked_mul(count).and_then(|len| len.checked_add(heads_len)).ok_or(Errno::NOMEM)?;
    // What nobody has written to takes no room, and none is set aside for it.
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: the kernel chooses an address where nothing is.
    let start =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
    let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
    // Small answers would be given two megabytes each. It is no matter if the kernel has no such pages.
    // SAFETY: this changes only how the kernel finds memory for what was mapped just now.
    let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, Advice::LinuxNoHugepage) };
    let map = Arc::new(Map { start, len });
    let slot = |at: usize| Slot {
        _map: Arc::clone(&map),
        // SAFETY: heads stand side by side in the first `heads_len` bytes of the map, which hold `count` of them.
        head: unsafe { start.add(HEAD_STRIDE * at) }.cast(),
        // SAFETY: payloads stand side by side in the rest, which holds `count` of them.
        payload: unsafe { start.add(heads_len + payload_len * at) },
        payload_len,
        number: first + at,
        queue,
        commit: 0,
        is_grown: false,
    };
    Ok((0..count).map(slot).collect())
}

impl Slot {
    fn head(&self) -> &Head {
        // SAFETY: it is within the map, aligned to 512 bytes, any bytes are a `Head`, and nobody writes there while we have
        // the slot: the kernel only while it is lent.
        unsafe { self.head.as_ref() }
    }

    fn head_mut(&mut self) -> &mut Head {
        // SAFETY: as above, and `&mut self` lets nobody else read it.
        unsafe { self.head.as_mut() }
    }

    /// Whether no request was in it since it was registered.
    pub(super) fn is_new(&self) -> bool {
        self.commit == 0
    }

    /// Which queue it belongs to.
    pub(super) fn queue(&self) -> u16 {
        self.queue
    }

    /// The header of the request that is in it, and the structure of its operation with how long that is.
    pub(super) fn request(&self) -> Option<(InHeader, [u8; 128], usize)> {
        let head = self.head();
        let (header, _) = InHeader::read_from_prefix(&head.in_out).ok()?;
        // How long the structure is stands nowhere: it is what is left.
        let others_len = size_of::<InHeader>() + self.request_payload().len();
        let len = usize::try_from(header.len).ok()?.checked_sub(others_len)?;
        (len <= head.structure.len()).then_some((header, head.structure, len))
    }

    /// What follows the structure: names and data.
    pub(super) fn request_payload(&self) -> &[u8] {
        let len = usize::try_from(self.head().entry.payload_len).unwrap_or(usize::MAX).min(self.payload_len);
        // SAFETY: the payload is within the map, and nobody writes there while we have the slot: the kernel only while it
        // is lent.
        unsafe { std::slice::from_raw_parts(self.payload.as_ptr(), len) }
    }

    fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above for all of it, and `&mut self` lets nobody else read it.
        unsafe { std::slice::from_raw_parts_mut(self.payload.as_ptr(), self.payload_len) }
    }

    /// Writes an answer over the request. `EIO` becomes of one that is too long.
    pub(super) fn fill<B: AsRef<[u8]>>(&mut self, error: i32, unique: u64, body: &[B]) {
        let body_len = body.iter().map(|piece| piece.as_ref().len()).sum::<usize>();
        let payload = self.payload_mut();
        let (error, body_len) = if body_len <= payload.len() {
            let mut left = payload;
            for piece in body {
                let (into, rest) = left.split_at_mut(piece.as_ref().len());
                into.copy_from_slice(piece.as_ref());
                left = rest;
            }
            (error, body_len)
        } else {
            tracing::warn!(request = unique, body_len, "an answer is longer than the kernel takes");
            (-Errno::IO.raw_os_error(), 0)
        };
        let len = u32::try_from(size_of::<OutHeader>() + body_len).unwrap_or(u32::MAX);
        let payload_len = u32::try_from(body_len).unwrap_or(u32::MAX);
        let head = self.head_mut();
        let out = OutHeader { len, error, unique };
        head.in_out[..size_of::<OutHeader>()].copy_from_slice(out.as_bytes());
        head.entry.payload_len = payload_len;
        self.is_grown |= body_len > GROWN_LEN;
    }

    /// Gives back the room that its payload takes, which is zeros then.
    fn shrink(&mut self) -> rustix::io::Result<()> {
        // SAFETY: these are whole pages of the map, which are ours alone (of the lent ones see `Commands::shrink`): with
        // `&mut self` nobody has borrowed what was there.
        unsafe { rustix::mm::madvise(self.payload.as_ptr().cast(), self.payload_len, Advice::LinuxDontNeed)? };
        self.is_grown = false;
        Ok(())
    }

    /// How much of it is an answer, in bytes.
    pub(super) fn answer_len(&self) -> usize {
        usize::try_from(self.head().entry.payload_len).unwrap_or(usize::MAX)
    }
}

/// What the kernel has said.
#[derive(Debug)]
pub(super) enum Event {
    /// Somebody else has rung the bell.
    Rung,
    /// A slot is ours again: with a request in it, or because it was not taken.
    Back(Slot, rustix::io::Result<()>),
}

/// Marks the bell among the numbers of slots.
const BELL: u64 = u64::MAX;

/// One `io_uring`, through which one thread speaks with the device.
pub(super) struct Commands {
    /// Not registered with the ring, which the kernel takes apart some time after a process has died: until then the device would
    /// be open, and whoever asks would wait.
    device: Device,
    bell: RawFd,
    uring: ManuallyDrop<IoUring<squeue::Entry128, cqueue::Entry>>,
    /// What the kernel has, by number, from the first that comes here.
    lent: Vec<Option<Slot>>,
    first: usize,
    lent_count: usize,
    /// Of those that are lent.
    grown_count: usize,
    waits_since_grown: u32,
    is_bell_watched: bool,
}

impl std::fmt::Debug for Commands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commands").field("lent", &self.lent_count).finish_non_exhaustive()
    }
}

impl Commands {
    /// For slots with these numbers, woken by a bell that must stay open. Not [enabled](Self::enable) yet.
    ///
    /// # Errors
    /// `ENOSYS`, `EPERM` or `EINVAL` where this process has no rings of this form, `ENOMEM`.
    pub(super) fn new(device: &Device, bell: &OwnedFd, numbers: Range<usize>) -> io::Result<Self> {
        // One for the bell. If the kernel has no ring of this length, commands are given when it is full.
        let entries = u32::try_from(numbers.len() + 1).map_err(|_| Errno::NOMEM)?;
        let mut builder = IoUring::<squeue::Entry128, cqueue::Entry>::builder();
        // One thread gives commands, and the kernel copies requests when that thread waits for them, not in between. One
        // command that fails does not hold up the others.
        builder.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        builder.setup_clamp().dontfork();
        let uring = builder.build(entries)?;
        let lent = std::iter::repeat_with(|| None).take(numbers.len()).collect();
        let (device, bell) = (device.clone(), bell.as_raw_fd());
        Ok(Self {
            device,
            bell,
            uring: ManuallyDrop::new(uring),
            lent,
            first: numbers.start,
            lent_count: 0,
            grown_count: 0,
            waits_since_grown: 0,
            is_bell_watched: false,
        })
    }

    /// From now on commands are this thread's.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()
    }

    /// Whether the kernel has no slot.
    pub(super) fn has_nothing_lent(&self) -> bool {
        self.lent_count == 0
    }

    /// Prepares a slot's being lent to the kernel for the first time.
    pub(super) fn register(&mut self, mut slot: Slot) -> io::Result<()> {
        let span = |start: usize, len: usize| Span { start: wide(start), len: wide(len) };
        let (head, payload) = (slot.head.addr().get(), slot.payload.addr().get());
        let spans = [span(head, KERNEL_HEAD_LEN), span(payload, slot.payload_len)];
        slot.head_mut().spans = spans;
        slot.commit = 0;
        let spans_at = wide(head + std::mem::offset_of!(Head, spans));
        self.lend(slot, ring::REGISTER, Some(spans_at))
    }

    /// Asks in vain for a slot to be taken, so that the kernel goes back to the device.
    pub(super) fn register_nothing(&mut self) -> io::Result<()> {
        let command = opcode::UringCmd80::new(self.device(), ring::REGISTER).build();
        self.push(&command.user_data(BELL))?;
        self.uring.submit()?;
        Ok(())
    }

    /// Prepares a slot's being given back with its answer.
    pub(super) fn commit(&mut self, slot: Slot) -> io::Result<()> {
        self.lend(slot, ring::COMMIT_AND_FETCH, None)
    }

    fn device(&self) -> types::Fd {
        types::Fd(self.device.as_fd().as_raw_fd())
    }

    fn lend(&mut self, slot: Slot, operation: u32, spans_at: Option<u64>) -> io::Result<()> {
        let number = slot.number;
        let command = RingCommand { queue: slot.queue, commit: slot.commit, ..RingCommand::new_zeroed() };
        let mut bytes = [0; 80];
        bytes[..size_of::<RingCommand>()].copy_from_slice(command.as_bytes());
        let entry =
            opcode::UringCmd80::new(self.device(), operation).cmd(bytes).addr(spans_at).build().user_data(wide(number));
        let entry = if spans_at.is_some() { with_len(entry, 2) } else { entry };
        self.push(&entry)?;
        if slot.is_grown {
            self.grown_count += 1;
            self.waits_since_grown = 0;
        }
        self.lent[number - self.first] = Some(slot);
        self.lent_count += 1;
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        loop {
            // SAFETY: what the command names is the slot's memory, which is kept in `lent` until the kernel gives it back. Files
            // are looked up when it is given, and are open: the device is ours, and the bell that of a post which is kept.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            again(|| self.uring.submit())?;
        }
    }

    /// Gives the kernel what was prepared.
    ///
    /// # Errors
    /// When the ring fails.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.uring.submission().is_empty() { Ok(()) } else { again(|| self.uring.submit()) }
    }

    /// Gives the kernel what was prepared, and waits until it says something.
    ///
    /// # Errors
    /// When the ring fails.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        if !self.is_bell_watched {
            // Each ring is told, without a read in between.
            let poll = opcode::PollAdd::new(types::Fd(self.bell), u32::from(rustix::event::PollFlags::IN.bits()));
            self.push(&squeue::Entry128::from(poll.multi(true).build().user_data(BELL)))?;
            self.is_bell_watched = true;
        }
        if self.grown_count == 0 {
            return again(|| self.uring.submit_and_wait(1));
        }
        self.waits_since_grown += 1;
        let in_time = types::SubmitArgs::new().timespec(&SHRINKS_AFTER);
        let waited = again(|| self.uring.submitter().submit_with_args(1, &in_time));
        let is_late = waited.as_ref().is_err_and(|error| Errno::from_io_error(error) == Some(Errno::TIME));
        if is_late || self.waits_since_grown >= SHRINKS_AFTER_WAITS {
            self.shrink();
        }
        if is_late { Ok(()) } else { waited }
    }

    /// What has grown and waits in the kernel gives its room back.
    fn shrink(&mut self) {
        // The kernel writes to what it was lent, and reads from it, only while this thread gives commands or waits
        // (`setup_defer_taskrun`); and what it has written since then has been told, so nothing must be told, or to be given.
        if !self.uring.completion().is_empty() || !self.uring.submission().is_empty() {
            return;
        }
        for slot in self.lent.iter_mut().flatten().filter(|slot| slot.is_grown) {
            if let Err(error) = slot.shrink() {
                tracing::debug!(%error, "memory of a ring stays");
                return;
            }
            self.grown_count -= 1;
        }
        self.waits_since_grown = 0;
    }

    /// What the kernel has said until now.
    pub(super) fn events(&mut self, into: &mut Vec<Event>) {
        for said in self.uring.completion() {
            if said.user_data() == BELL {
                self.is_bell_watched &= cqueue::more(said.flags());
                into.push(Event::Rung);
                continue;
            }
            let number = usize::try_from(said.user_data()).unwrap_or(usize::MAX);
            let at = number.wrapping_sub(self.first);
            let Some(mut slot) = self.lent.get_mut(at).and_then(Option::take) else { continue };
            self.lent_count -= 1;
            self.grown_count -= usize::from(slot.is_grown);
            let result = match said.result() {
                0.. => Ok(()),
                error => Err(Errno::from_raw_os_error(-error)),
            };
            if result.is_ok() {
                slot.commit = slot.head().entry.commit;
                slot.is_grown |= slot.request_payload().len() > GROWN_LEN;
            }
            into.push(Event::Back(slot, result));
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // SAFETY: it is not used after this.
        unsafe { ManuallyDrop::drop(&mut self.uring) };
        // The kernel ends what is under way a moment after that, and may write until then: such memory stays mapped for good.
        // This does not happen where a thread has ended in order, or is gone before its ring: that waits for the kernel.
        for slot in self.lent.drain(..).flatten() {
            let _ = ManuallyDrop::new(slot);
        }
    }
}

fn again(call: impl Fn() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call() {
            Ok(_) => return Ok(()),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The same command with `len`, which `UringCmd80` has no word for.
fn with_len(entry: squeue::Entry128, len: u32) -> squeue::Entry128 {
    /// Of `io_uring_sqe.len`.
    const AT: usize = 24;
    // SAFETY: both are 128 bytes of which any value will do: the entry is `repr(C)` of the kernel's structure, numbers only.
    let mut bytes: [u8; 128] = unsafe { std::mem::transmute(entry) };
    bytes[AT..AT + 4].copy_from_slice(&len.to_ne_bytes());
    // SAFETY: as above.
    unsafe { std::mem::transmute(bytes) }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
