//! How the small files of a directory are read, and how many of them are worth fetching before somebody opens them. No I/O.
//!
//! Two things tell that more will be wanted: files that are read in listed order, and files that were fetched ahead and are
//! then read. A program with an order of its own (numbers, chance) is followed only where all small files of the directory
//! are little together: some of what is fetched for it may be for nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::Name;

/// Reads that are further apart than this have nothing to do with each other.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Most files that wait to be read, where they do not fit in whole.
const AHEAD_MAX: usize = 256;
/// So many are fetched for each that was read.
const AHEAD_PER_READ: usize = 4;
/// Reads without any order before that counts.
const CHANCE: usize = 2;
/// Lookups without a read between them: nobody reads any more.
const LOOKUPS_MAX: u32 = 4;

/// What was seen of a directory's reads lately.
#[derive(Debug, Default)]
pub struct Reads {
    last: Option<(Name, Instant)>,
    /// What comes after `last` in listed order.
    next: Option<Name>,
    /// How many were read in listed order, up to now.
    in_order: u32,
    /// How many had been fetched ahead.
    hits: usize,
    /// How many were neither.
    misses: usize,
    lookups: u32,
    /// Files up to this one were looked at; all before it stand here too, once it has gone round.
    pub cursor: Option<Name>,
    /// It has gone round.
    pub wrapped: bool,
    /// Whether all small files are little together, once that was asked.
    pub fits: Option<bool>,
}

impl Reads {
    /// A small file is read from its beginning; `fetched`: it had been fetched ahead. Returns whether that is news.
    pub fn on_read(&mut self, name: &Name, fetched: bool, now: Instant) -> bool {
        if self.last.as_ref().is_some_and(|(_, at)| now.duration_since(*at) > PAUSE_MAX) {
            *self = Self::default();
        }
        self.lookups = 0;
        let is_first = match &mut self.last {
            Some((last, at)) if last == name => {
                *at = now;
                return false;
            }
            last => last.replace((name.clone(), now)).is_none(),
        };
        let is_next = self.next.take().as_ref() == Some(name);
        match (is_first, is_next) {
            (true, _) => {}
            (_, true) => self.in_order = self.in_order.saturating_add(1),
            _ => self.in_order = 0,
        }
        match fetched {
            true => self.hits += 1,
            false if !is_first && !is_next => self.misses += 1,
            false => {}
        }
        if is_first || !is_next && !fetched && self.fits != Some(true) {
            self.cursor = Some(name.clone());
        }
        true
    }

    /// Which file would be read next in listed order.
    pub fn expect(&mut self, next: Option<Name>) {
        self.next = next;
    }

    /// Whether it matters if all small files are little together.
    pub fn has_no_order(&self) -> bool {
        self.misses > CHANCE
    }

    /// How many files may wait to be read.
    pub fn ahead(&self) -> usize {
        let in_order = match self.in_order {
            0 => 0,
            count => (AHEAD_PER_READ << count.min(6)).min(AHEAD_MAX),
        };
        if self.fits == Some(true) && self.has_no_order() {
            return in_order.max((self.hits + self.misses) * AHEAD_PER_READ);
        }
        // What was fetched for nothing counts against what was not.
        let hits = self.hits.saturating_sub(self.misses) * AHEAD_PER_READ;
        in_order.max(hits.min(AHEAD_MAX))
    }

    /// A name is looked up. Returns whether it is likely to be read then.
    pub fn on_lookup(&mut self, now: Instant) -> bool {
        self.lookups = self.lookups.saturating_add(1);
        let is_lately = self.last.as_ref().is_some_and(|(_, at)| now.duration_since(*at) <= PAUSE_MAX);
        is_lately && self.lookups <= LOOKUPS_MAX && self.ahead() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        Name::from(format!("f{number:04}").as_bytes())
    }

    /// Reads files in an order, each of which was fetched before if `fetched` says so.
    fn read(reads: &mut Reads, order: &[usize], fetched: bool) {
        for &number in order {
            assert!(reads.on_read(&name(number), fetched, Instant::now()));
            reads.expect(Some(name(number + 1)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn listed_order_is_followed_from_the_second_file_on() {
        let mut reads = Reads::default();
        read(&mut reads, &[7], false);
        assert_eq!((reads.ahead(), reads.on_lookup(Instant::now())), (0, false));
        read(&mut reads, &[8], false);
        assert_eq!(reads.ahead(), 8);
        read(&mut reads, &[9, 10], true);
        assert_eq!((reads.ahead(), reads.cursor.clone()), (32, Some(name(7))));
        read(&mut reads, &(11..99).collect::<Vec<_>>(), true);
        assert_eq!(reads.ahead(), AHEAD_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn without_order_only_what_fits_is_followed() {
        for (fits, ahead) in [(false, 0), (true, 20)] {
            let mut reads = Reads::default();
            read(&mut reads, &[100, 3, 77], false);
            assert!(!reads.has_no_order());
            read(&mut reads, &[12, 50], false);
            assert!(reads.has_no_order());
            reads.fits = Some(fits);
            read(&mut reads, &[31], false);
            assert_eq!(reads.ahead(), ahead);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_file_again_and_again_is_no_order() {
        let mut reads = Reads::default();
        read(&mut reads, &[1], false);
        for _ in 0..5 {
            assert!(!reads.on_read(&name(1), false, Instant::now()));
        }
        assert_eq!(reads.ahead(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_alone_and_pauses_end_it() {
        let mut reads = Reads::default();
        read(&mut reads, &[1, 2, 3], false);
        let likely = (0..6).map(|_| reads.on_lookup(Instant::now())).collect::<Vec<_>>();
        assert_eq!(likely, [true, true, true, true, false, false]);
        read(&mut reads, &[4], false);
        assert!(reads.on_lookup(Instant::now()));
        tokio::time::advance(PAUSE_MAX * 2).await;
        assert!(!reads.on_lookup(Instant::now()));
        read(&mut reads, &[5], false);
        assert_eq!(reads.ahead(), 0);
    }
}
