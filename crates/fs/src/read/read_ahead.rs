//! How far to read ahead. No I/O.

use std::ops::Range;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What is fetched ahead of the first read of a stream: small, so that its first byte comes soon.
const WINDOW_LEN_MIN: u64 = MIB;
/// What is in flight ahead of a fast sequential reader; several GETs side by side.
const WINDOW_LEN_MAX: u64 = 32 * MIB;
/// The kernel sends the requests of one stream a little out of order.
const TOLERANCE: u64 = MIB;
/// Streams of one file that are followed at the same time.
const STREAM_COUNT_MAX: usize = 16;
/// A random read fetches whole blocks of this length: its neighbours are often read next.
const RANDOM_BLOCK_LEN: u64 = 128 * KIB;

#[derive(Debug)]
struct Stream {
    handle: u64,
    next: u64,
    window: u64,
    reads: u32,
}

/// Follows the sequential streams in one file's reads, of all its handles.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// The one used last stands at the end.
    streams: Vec<Stream>,
}

impl ReadAhead {
    /// Returns the range that should be in flight now that `handle` asked for `wanted`.
    pub fn on_read(&mut self, handle: u64, wanted: Range<u64>, object_len: u64) -> Range<u64> {
        let follows = |stream: &Stream| {
            stream.handle == handle
                && wanted.start <= stream.next.saturating_add(TOLERANCE)
                && wanted.end.saturating_add(TOLERANCE) >= stream.next
        };
        let Some(at) = self.streams.iter().rposition(follows) else {
            return self.on_new(handle, wanted, object_len);
        };
        let mut stream = self.streams.remove(at);
        // Reading the same place again is no progress.
        if wanted.end > stream.next {
            stream.next = wanted.end;
            stream.reads += 1;
            stream.window = (stream.window * 2).clamp(WINDOW_LEN_MIN, WINDOW_LEN_MAX);
        }
        let end = stream.next.saturating_add(stream.window).min(object_len);
        self.streams.push(stream);
        wanted.start.min(object_len)..end.max(wanted.end.min(object_len))
    }

    fn on_new(&mut self, handle: u64, wanted: Range<u64>, object_len: u64) -> Range<u64> {
        if self.streams.len() == STREAM_COUNT_MAX {
            self.streams.remove(0);
        }
        // A read of the beginning is most often the first of many; elsewhere the second one decides.
        let window = if wanted.start == 0 { WINDOW_LEN_MIN } else { 0 };
        self.streams.push(Stream { handle, next: wanted.end, window, reads: 1 });
        if window > 0 {
            return 0..(wanted.end + window).min(object_len);
        }
        let start = wanted.start / RANDOM_BLOCK_LEN * RANDOM_BLOCK_LEN;
        start.min(object_len)..wanted.end.next_multiple_of(RANDOM_BLOCK_LEN).min(object_len)
    }

    /// A handle was closed: its streams end.
    pub fn forget(&mut self, handle: u64) {
        self.streams.retain(|stream| stream.handle != handle);
    }

    /// Whether some stream will come to `range` soon, or has just left it by less than `tail` bytes.
    pub fn needs(&self, range: &Range<u64>, tail: u64) -> bool {
        self.streams.iter().any(|stream| {
            let ahead = stream.next.saturating_add(stream.window.max(RANDOM_BLOCK_LEN));
            range.end.saturating_add(tail) > stream.next && range.start < ahead
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 1 << 30;

    #[test]
    fn a_sequential_reader_gets_a_growing_window() {
        let mut ahead = ReadAhead::default();
        let mut last = 0;
        for at in 0..64 {
            let wanted = at * 128 * KIB..(at + 1) * 128 * KIB;
            let window = ahead.on_read(1, wanted.clone(), LEN);
            assert!(window.start <= wanted.start && window.end >= wanted.end);
            assert!(window.end - wanted.end <= WINDOW_LEN_MAX);
            last = window.end - wanted.end;
        }
        assert_eq!(last, WINDOW_LEN_MAX);
    }

    #[test]
    fn a_random_reader_fetches_little() {
        let mut ahead = ReadAhead::default();
        for at in [700, 3, 500, 90, 800, 250] {
            let start = at * MIB + 5000;
            let window = ahead.on_read(1, start..start + 4096, LEN);
            assert!(window.end - window.start <= 2 * RANDOM_BLOCK_LEN, "{window:?}");
        }
    }

    #[test]
    fn streams_in_one_handle_are_told_apart() {
        let mut ahead = ReadAhead::default();
        for step in 0..10 {
            for base in [0, 300 * MIB, 600 * MIB] {
                let start = base + step * 128 * KIB;
                let window = ahead.on_read(1, start..start + 128 * KIB, LEN);
                if step > 2 {
                    assert!(window.end - start > MIB, "step {step} base {base}: {window:?}");
                }
            }
        }
    }

    #[test]
    fn the_end_of_the_object_bounds_everything() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.on_read(1, 0..4096, 4096), 0..4096);
        assert_eq!(ahead.on_read(2, 9000..13_000, 10_000), 0..10_000);
    }
}
