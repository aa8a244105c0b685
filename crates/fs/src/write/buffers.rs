//! Memory for staged bytes on their way to the store, used again while uploads go on: what is given back to the kernel has to be
//! mapped and cleared for the next part, which took a sixth of the CPU of a long write.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::dirty_file::CHUNK_LEN;
use crate::guard;

/// Less than this is not worth one of them, in bytes.
const LEN_MIN: usize = 256 << 10;
/// Most that wait to be used again: what the parts of one file take that are sent side by side.
const FREE_MAX: usize = 32;

/// Buffers of [`CHUNK_LEN`].
#[derive(Debug, Default)]
pub(super) struct Buffers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Box<[u8]>>,
    lent: usize,
}

/// Bytes of any value, to be filled.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    /// Where they go back to.
    home: Option<Arc<Buffers>>,
}

impl Buffers {
    /// A buffer of `len` bytes, [`CHUNK_LEN`] at most.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let whole = usize::try_from(CHUNK_LEN).unwrap_or(usize::MAX);
        if !(LEN_MIN..=whole).contains(&len) {
            return Buffer { bytes: vec![0; len].into(), len, home: None };
        }
        let free = {
            let mut state = guard(&self.state);
            state.lent += 1;
            state.free.pop()
        };
        let bytes = free.unwrap_or_else(|| vec![0; whole].into());
        Buffer { bytes, len, home: Some(Arc::clone(self)) }
    }
}

impl Buffer {
    /// Hands them out.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let mut state = guard(&home.state);
        state.lent -= 1;
        if state.lent == 0 {
            // Nothing is on its way.
            state.free = Vec::new();
        } else if state.free.len() < FREE_MAX {
            state.free.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: usize = 1 << 20;

    #[test]
    fn they_are_used_again_while_others_are_on_their_way() {
        let buffers = Arc::new(Buffers::default());
        let other = buffers.take(WHOLE).freeze();
        let mut first = buffers.take(WHOLE - 5);
        first.fill(7);
        let at = first.as_ptr();
        let bytes = first.freeze();
        assert!(bytes.len() == WHOLE - 5 && bytes.iter().all(|&byte| byte == 7));
        let part = bytes.slice(100..200);
        drop(bytes);
        // Somebody still reads it.
        assert_ne!(buffers.take(WHOLE).as_ptr(), at);
        drop(part);
        let again = buffers.take(LEN_MIN);
        assert_eq!((again.as_ptr(), again.len()), (at, LEN_MIN));
        drop((again, other));
        let state = guard(&buffers.state);
        assert_eq!((state.free.len(), state.lent), (0, 0));
    }

    #[test]
    fn other_lengths_are_made_for_themselves() {
        let buffers = Arc::new(Buffers::default());
        for len in [0, 1, LEN_MIN - 1, WHOLE + 1] {
            assert_eq!(buffers.take(len).freeze().len(), len);
        }
        assert_eq!(guard(&buffers.state).lent, 0);
    }
}
