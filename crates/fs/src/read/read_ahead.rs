//! How far to read ahead. No I/O.

use std::ops::Range;

use crate::cache::BLOCK_LEN;

const MIB: u64 = 1 << 20;

/// What is fetched ahead of the first read of a stream: small, so that its first byte comes soon.
const WINDOW_LEN_MIN: u64 = MIB;
/// What is in flight ahead of a fast sequential reader; several GETs side by side.
const WINDOW_LEN_MAX: u64 = 48 * MIB;
/// The kernel sends the requests of one stream a little out of order.
const TOLERANCE: u64 = MIB;
/// Streams of one file that are followed at the same time.
const STREAM_COUNT_MAX: usize = 16;
/// A random read fetches whole blocks of this length: its neighbours are often read next, and the cache keeps no less.
const RANDOM_BLOCK_LEN: u64 = BLOCK_LEN;

/// A stream that goes backwards is one after so many steps: requests of a forward one come a little out of order.
const BACKWARD_STEPS: u32 = 2;
/// Reads that are equally far apart are a pattern after so many steps of the same length.
const STRIDE_STEPS: u32 = 2;
/// Steps of such a pattern that are fetched ahead.
const STRIDE_AHEAD_MAX: u32 = 8;

/// What should be in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Around what was asked for.
    pub window: Range<u64>,
    /// Elsewhere: where the next reads are expected.
    pub jumps: Vec<Range<u64>>,
}

/// Reads that stand side by side.
#[derive(Debug)]
struct Stream {
    handle: u64,
    /// What was read of it.
    low: u64,
    next: u64,
    window: u64,
    /// Steps downwards since the last one upwards.
    back: u32,
}

/// Reads of one handle that are equally far apart.
#[derive(Debug)]
struct Stride {
    handle: u64,
    last: u64,
    step: i64,
    steps: u32,
    expected: Vec<Range<u64>>,
}

/// Follows the sequential streams in one file's reads, of all its handles, forwards and backwards, and reads in equal steps.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// The one used last stands at the end.
    streams: Vec<Stream>,
    strides: Vec<Stride>,
}

impl ReadAhead {
    /// Returns what should be in flight now that `handle` asked for `wanted`.
    pub fn on_read(&mut self, handle: u64, wanted: Range<u64>, object_len: u64) -> Ahead {
        let goes_up = |stream: &Stream| {
            wanted.start <= stream.next.saturating_add(TOLERANCE) && wanted.end.saturating_add(TOLERANCE) >= stream.next
        };
        let goes_down =
            |stream: &Stream| wanted.start < stream.low && wanted.end.saturating_add(TOLERANCE) >= stream.low;
        let follows = |stream: &Stream| stream.handle == handle && (goes_up(stream) || goes_down(stream));
        let Some(at) = self.streams.iter().rposition(follows) else {
            let jumps = self.on_jump(handle, &wanted, object_len);
            return Ahead { window: self.on_new(handle, wanted, object_len), jumps };
        };
        let mut stream = self.streams.remove(at);
        // Reading the same place again is no progress.
        if wanted.end > stream.next {
            stream.next = wanted.end;
            stream.back = 0;
            stream.window = (stream.window * 2).clamp(WINDOW_LEN_MIN, WINDOW_LEN_MAX);
        } else if wanted.start < stream.low {
            stream.low = wanted.start;
            stream.back += 1;
            if stream.back == BACKWARD_STEPS {
                stream.window = 0;
            }
            if stream.back >= BACKWARD_STEPS {
                stream.window = (stream.window * 2).clamp(WINDOW_LEN_MIN, WINDOW_LEN_MAX);
            }
        }
        let window = if stream.back >= BACKWARD_STEPS {
            wanted.start.min(stream.low).saturating_sub(stream.window)..wanted.end.min(object_len)
        } else {
            let end = stream.next.saturating_add(stream.window).min(object_len);
            wanted.start.min(object_len)..end.max(wanted.end.min(object_len))
        };
        self.streams.push(stream);
        Ahead { window, jumps: Vec::new() }
    }

    fn on_new(&mut self, handle: u64, wanted: Range<u64>, object_len: u64) -> Range<u64> {
        if self.streams.len() == STREAM_COUNT_MAX {
            self.streams.remove(0);
        }
        // A read of the beginning is most often the first of many; elsewhere the second one decides.
        let window = if wanted.start == 0 { WINDOW_LEN_MIN } else { 0 };
        self.streams.push(Stream { handle, low: wanted.start, next: wanted.end, window, back: 0 });
        if window > 0 {
            return 0..(wanted.end + window).min(object_len);
        }
        blocks(&wanted, object_len)
    }

    /// A read that continues no stream; gives where the next ones are expected.
    fn on_jump(&mut self, handle: u64, wanted: &Range<u64>, object_len: u64) -> Vec<Range<u64>> {
        let Some(at) = self.strides.iter().position(|stride| stride.handle == handle) else {
            if self.strides.len() == STREAM_COUNT_MAX {
                self.strides.remove(0);
            }
            self.strides.push(Stride { handle, last: wanted.start, step: 0, steps: 0, expected: Vec::new() });
            return Vec::new();
        };
        let mut stride = self.strides.remove(at);
        // An object is far shorter than that.
        let step = wanted.start.wrapping_sub(stride.last).cast_signed();
        stride.steps = if step == stride.step { stride.steps + 1 } else { 0 };
        (stride.last, stride.step) = (wanted.start, step);
        stride.expected = match stride.steps {
            0..STRIDE_STEPS => Vec::new(),
            steps => (1..=steps.min(STRIDE_AHEAD_MAX))
                .filter_map(|ahead| {
                    let by = step.checked_mul(ahead.into())?;
                    let start = wanted.start.checked_add_signed(by).filter(|start| *start < object_len)?;
                    Some(blocks(&(start..start + (wanted.end - wanted.start)), object_len))
                })
                .collect(),
        };
        let expected = stride.expected.clone();
        self.strides.push(stride);
        expected
    }

    /// A handle was closed: its streams end.
    pub fn forget(&mut self, handle: u64) {
        self.streams.retain(|stream| stream.handle != handle);
        self.strides.retain(|stride| stride.handle != handle);
    }

    /// Whether some stream will come to `range` soon, or has just left it by less than `tail` bytes.
    pub fn needs(&self, range: &Range<u64>, tail: u64) -> bool {
        let by_stream = self.streams.iter().any(|stream| {
            let ahead = stream.window.max(RANDOM_BLOCK_LEN);
            let (from, to) = match stream.back {
                0..BACKWARD_STEPS => (stream.next.saturating_sub(tail), stream.next.saturating_add(ahead)),
                _ => (stream.low.saturating_sub(ahead), stream.low.saturating_add(tail)),
            };
            range.end > from && range.start < to
        });
        let is_expected = |expected: &Range<u64>| range.end > expected.start && range.start < expected.end;
        by_stream || self.strides.iter().any(|stride| stride.expected.iter().any(is_expected))
    }
}

/// The whole blocks around a random read.
fn blocks(wanted: &Range<u64>, object_len: u64) -> Range<u64> {
    let start = wanted.start / RANDOM_BLOCK_LEN * RANDOM_BLOCK_LEN;
    start.min(object_len)..wanted.end.next_multiple_of(RANDOM_BLOCK_LEN).min(object_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    const LEN: u64 = 1 << 30;

    #[test]
    fn a_sequential_reader_gets_a_growing_window() {
        let mut ahead = ReadAhead::default();
        let mut last = 0;
        for at in 0..64 {
            let wanted = at * 128 * KIB..(at + 1) * 128 * KIB;
            let window = ahead.on_read(1, wanted.clone(), LEN).window;
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
            let window = ahead.on_read(1, start..start + 4096, LEN).window;
            assert!(window.end - window.start <= 2 * RANDOM_BLOCK_LEN, "{window:?}");
        }
    }

    #[test]
    fn streams_in_one_handle_are_told_apart() {
        let mut ahead = ReadAhead::default();
        for step in 0..10 {
            for base in [0, 300 * MIB, 600 * MIB] {
                let start = base + step * 128 * KIB;
                let window = ahead.on_read(1, start..start + 128 * KIB, LEN).window;
                if step > 2 {
                    assert!(window.end - start > MIB, "step {step} base {base}: {window:?}");
                }
            }
        }
    }

    #[test]
    fn the_end_of_the_object_bounds_everything() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.on_read(1, 0..4096, 4096).window, 0..4096);
        assert_eq!(ahead.on_read(2, 9000..13_000, 10_000).window, 0..10_000);
    }

    #[test]
    fn a_backward_reader_gets_a_growing_window_too() {
        let mut ahead = ReadAhead::default();
        let mut last = 0;
        for at in (0..400).rev() {
            let wanted = (500 + at) * 128 * KIB..(501 + at) * 128 * KIB;
            let Ahead { window, jumps } = ahead.on_read(1, wanted.clone(), LEN);
            assert!(window.start <= wanted.start && window.end >= wanted.end && jumps.is_empty(), "{window:?}");
            last = wanted.start - window.start;
            assert!(at > 396 || last >= WINDOW_LEN_MIN, "{at}: {window:?}");
            assert!(at > 390 || ahead.needs(&(wanted.start - MIB..wanted.start), 0));
        }
        assert_eq!(last, WINDOW_LEN_MAX);
        // It turns.
        let mut window = 0..0;
        for at in 0..30 {
            let start = 500 * 128 * KIB + at * 128 * KIB;
            window = ahead.on_read(1, start..start + 128 * KIB, LEN).window;
        }
        assert!(window.end >= 530 * 128 * KIB);
    }

    #[test]
    fn requests_a_little_out_of_order_are_no_backward_reader() {
        let mut ahead = ReadAhead::default();
        for at in [801u64, 800, 803, 802, 805, 804, 807, 806] {
            let wanted = at * 128 * KIB..(at + 1) * 128 * KIB;
            let window = ahead.on_read(1, wanted.clone(), LEN).window;
            assert!(window.start + 2 * RANDOM_BLOCK_LEN > wanted.start, "{at}: {window:?}");
        }
    }

    #[test]
    fn reads_in_equal_steps_are_expected() {
        for step in [7 * MIB, 3 * MIB + 4096] {
            let mut ahead = ReadAhead::default();
            for turn in 0..20 {
                let start = 5 * MIB + turn * step;
                let found = ahead.on_read(1, start..start + 4096, LEN);
                assert!(found.window.end - found.window.start <= 2 * RANDOM_BLOCK_LEN);
                let count = if turn < 3 { 0 } else { (turn - 1).min(8) };
                assert_eq!(found.jumps.len() as u64, count, "{turn}");
                for (next, jump) in (1..).zip(&found.jumps) {
                    let expected = start + next * step;
                    assert!(jump.start <= expected && jump.end >= expected + 4096);
                    assert!(ahead.needs(jump, 0));
                }
            }
        }
        // Downwards, to the beginning.
        let mut ahead = ReadAhead::default();
        let found: Vec<_> = (0..6).rev().map(|at| ahead.on_read(1, at * 9 * MIB..at * 9 * MIB + 10, LEN)).collect();
        assert_eq!(found[3].jumps, [9 * MIB..9 * MIB + RANDOM_BLOCK_LEN, 0..RANDOM_BLOCK_LEN]);
        ahead.forget(1);
        assert!(!ahead.needs(&(0..LEN), 0));
    }
}
