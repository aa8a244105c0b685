//! Reads files as a program would, at little cost of its own, and checks what it reads.
//!
//! Each page of 4 KiB of a file begins with its number (8 bytes, big-endian); so a page from elsewhere is seen. Prints one
//! line of JSON: seconds, bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

const PAGE_LEN: u64 = 4096;
const USAGE: &str = "usage:
  load stream FILE…                                              each from its beginning to its end, one thread a file
  load random --block N --threads N --count N FILE               blocks at random places, always the same ones
  load offsets --readers N --each N FILE                         several streams far apart, through one descriptor";
const STREAM_BLOCK_LEN: u64 = 1 << 20;

/// The words of the command line: names with a number each, then files.
struct Words {
    numbers: BTreeMap<String, u64>,
    files: Vec<PathBuf>,
}

impl Words {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let (mut numbers, mut files) = (BTreeMap::new(), Vec::new());
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) => drop(numbers.insert(name.to_owned(), words.next()?.parse().ok()?)),
                None => files.push(word.into()),
            }
        }
        Some(Self { numbers, files })
    }

    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.numbers.get(name).copied().unwrap_or(otherwise).max(1)
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)?;
    let last = (buffer.len() as u64 - 1) / PAGE_LEN * PAGE_LEN;
    for at in [0, last] {
        let number = buffer[at as usize..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        if offset.is_multiple_of(PAGE_LEN) && number != Some((offset + at) / PAGE_LEN) {
            return Err(io::Error::other(format!("another page at {}", offset + at)));
        }
    }
    Ok(())
}

fn stream(file: &File, range: Range<u64>) -> io::Result<u64> {
    let mut buffer = vec![0; STREAM_BLOCK_LEN as usize];
    let mut at = range.start;
    while at < range.end {
        let len = STREAM_BLOCK_LEN.min(range.end - at);
        read_at(file, &mut buffer[..len as usize], at)?;
        at += len;
    }
    Ok(at - range.start)
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

type Reader = JoinHandle<io::Result<u64>>;

fn stream_whole(path: PathBuf) -> Reader {
    std::thread::spawn(move || {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        stream(&file, 0..len)
    })
}

fn random_reader(file: Arc<File>, number: u64, block: u64, count: u64) -> Reader {
    std::thread::spawn(move || {
        let places = file.metadata()?.len() / block;
        let mut state = number;
        let mut buffer = vec![0; block as usize];
        for _ in 0..count {
            read_at(&file, &mut buffer, random(&mut state) % places * block)?;
        }
        Ok(count * block)
    })
}

fn join(threads: Vec<Reader>) -> io::Result<u64> {
    let mut total = 0;
    for thread in threads {
        total += thread.join().map_err(|_| io::Error::other("a reader panicked"))??;
    }
    Ok(total)
}

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let what = words.next().unwrap_or_default();
    let Some(words) = Words::parse(words).filter(|words| !words.files.is_empty()) else {
        return Err(io::Error::other(USAGE));
    };
    let start = Instant::now();
    let threads = match what.as_str() {
        "stream" => words.files.into_iter().map(stream_whole).collect(),
        "random" => {
            let (threads, block) = (words.number("threads", 1), words.number("block", PAGE_LEN));
            let file = Arc::new(File::open(&words.files[0])?);
            let each = words.number("count", 1) / threads;
            (0..threads).map(|number| random_reader(Arc::clone(&file), number, block, each)).collect()
        }
        "offsets" => {
            let (readers, file) = (words.number("readers", 1), Arc::new(File::open(&words.files[0])?));
            let apart = file.metadata()?.len() / readers / PAGE_LEN * PAGE_LEN;
            let each = words.number("each", apart).min(apart);
            (0..readers)
                .map(|number| {
                    let file = Arc::clone(&file);
                    std::thread::spawn(move || stream(&file, number * apart..number * apart + each))
                })
                .collect()
        }
        _ => return Err(io::Error::other(USAGE)),
    };
    let bytes = join(threads)?;
    println!("{{\"seconds\": {}, \"bytes\": {bytes}}}", start.elapsed().as_secs_f64());
    Ok(())
}
