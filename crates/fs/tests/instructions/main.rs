//! A guard: how many instructions a mount's process spends on three paths, beside what was recorded.
//!
//! This program is both sides. As a test it is the kernel and an S3 server, which are not counted; it starts itself below
//! valgrind's callgrind as the mount between them: FUSE requests, tree, reader, staging, signatures and HTTP. Instructions,
//! unlike seconds, are the same on a busy machine. They differ between compilers and versions of libraries, so the bound is
//! generous: it is there for what a change makes twice as dear, not for five per cent.
//!
//! ```sh
//! cargo test --workspace --test instructions                  # compares; part of `make test`
//! cargo test --workspace --test instructions -- --record      # writes counts.json anew
//! ```

mod kernel;
mod paths;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use sandpail_testkit::world::Access;

use self::kernel::Kernel;
use self::paths::{Bucket, PATHS, Path};

/// A path that takes more than so many times what was recorded has become slower.
const MOST: f64 = 1.3;
/// Below this the record hides what gets slower from now on.
const LEAST: f64 = 0.7;
/// Says to this program that it is the mount.
const MOUNT: &str = "--mount";
const RECORD: &str = "cargo test --workspace --test instructions -- --record";

/// Counts of each path, by [`kind`].
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some(MOUNT) => mount(&args[1..]).map(|()| true),
        _ => test(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn mount(words: &[String]) -> Result<()> {
    let words = <[String; 6]>::try_from(words.to_vec());
    let Ok([endpoint, bucket, key_id, secret, directory, metadata]) = words else {
        bail!("{MOUNT} is for this program itself")
    };
    paths::mount(&Access { endpoint, bucket, key_id, secret }, directory.as_ref(), &metadata)
}

/// Counts and compares what the command line of `cargo test` chooses, or records all.
fn test(args: &[String]) -> Result<bool> {
    let has = |option: &str| args.iter().any(|arg| arg == option);
    let filters = filters(args);
    let wants = |path: &&Path| filters.is_empty() || filters.iter().any(|filter| path.name.contains(filter.as_str()));
    let chosen: Vec<&Path> = PATHS.iter().filter(wants).collect();
    if has("--list") {
        chosen.iter().for_each(|path| println!("{}: test", path.name));
        return Ok(true);
    }
    println!("\nrunning {} tests", chosen.len());
    let begun = Instant::now();
    if !chosen.is_empty() && !has_valgrind()? {
        // `make test` installs it, so in CI something is wrong.
        let is_ci = std::env::var_os("CI").is_some();
        println!("valgrind is missing (scripts/setup test installs it): no instructions are counted");
        result(is_ci, 0, if is_ci { chosen.len() } else { 0 }, begun);
        return Ok(!is_ci);
    }
    let counted = chosen.iter().map(|path| (path.name, count(path)));
    if has("--record") {
        ensure!(filters.is_empty(), "all paths are recorded, or none");
        let counts = counted.map(|(name, count)| Ok((name.to_owned(), count?))).collect::<Result<_>>()?;
        record(counts)?;
        return Ok(true);
    }
    let recorded = recorded()?;
    let Some(recorded) = recorded.get(&kind()) else {
        println!("nothing is recorded for {}, so nothing is compared: {RECORD}", kind());
        result(false, 0, 0, begun);
        return Ok(true);
    };
    let failures: Vec<String> = counted
        .zip(&chosen)
        .filter_map(|((name, count), path)| {
            let judged = count.and_then(|count| judge(path, count, recorded.get(name).copied()));
            println!("test {name} ... {}", judged.as_deref().unwrap_or("FAILED"));
            judged.err().map(|error| format!("---- {name}\n{error:#}\n"))
        })
        .collect();
    failures.iter().for_each(|failure| println!("\n{failure}"));
    result(!failures.is_empty(), chosen.len() - failures.len(), failures.len(), begun);
    Ok(failures.is_empty())
}

/// The words that choose tests; `cargo test` passes options on, too.
fn filters(args: &[String]) -> Vec<&String> {
    let mut filters = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--test-threads" | "--skip" | "--format" | "--color" | "-Z" => drop(args.next()),
            _ if arg.starts_with('-') => {}
            _ => filters.push(arg),
        }
    }
    filters
}

fn result(failed: bool, passed: usize, failures: usize, begun: Instant) {
    let told = if failed { "FAILED" } else { "ok" };
    let took = begun.elapsed().as_secs_f64();
    println!(
        "\ntest result: {told}. {passed} passed; {failures} failed; 0 ignored; 0 measured; 0 filtered out; finished in {took:.2}s\n"
    );
}

fn has_valgrind() -> Result<bool> {
    match Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("valgrind"),
    }
}

/// Where callgrind writes what it counted.
fn profile(path: &Path) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("instructions-{}.out", path.name))
}

/// Instructions of a mount's process from its start to its end.
fn count(path: &Path) -> Result<u64> {
    let (bucket, profile, directory) = (Bucket::new()?, profile(path), tempfile::tempdir()?);
    path.fill(&bucket)?;
    let (kernel, device) = Kernel::new()?;
    let Access { endpoint, bucket: name, key_id, secret } = bucket.access();
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--fair-sched=yes"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args([MOUNT, endpoint, name, key_id, secret])
        .arg(directory.path())
        .arg(path.metadata)
        .stdin(device)
        .spawn()
        .context("valgrind")?;
    let gone = path.go(kernel, &bucket);
    if gone.is_err() {
        // It may wait for more; it has ended already if that is why nothing came.
        let _ = child.kill();
    }
    let ended = child.wait()?;
    gone.with_context(|| format!("{}, which ended with {ended}", path.about))?;
    ensure!(ended.success(), "{}: ended with {ended}", path.about);
    let text = std::fs::read_to_string(&profile).with_context(|| profile.display().to_string())?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: ")).context("callgrind counted nothing")?;
    Ok(totals.trim().parse()?)
}

fn judge(path: &Path, count: u64, recorded: Option<u64>) -> Result<String> {
    let recorded = recorded.with_context(|| format!("nothing is recorded; to do that: {RECORD}"))?;
    // Far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let (ratio, millions) = (count as f64 / recorded as f64, count as f64 / 1e6);
    let told = format!("{millions:.1} million instructions, {ratio:.3} of what is recorded");
    if ratio > MOST {
        bail!(
            "{}: {count} instructions, {recorded} are recorded: {ratio:.2} times as many, and {MOST} is the most.\n\
             Where they are spent:  callgrind_annotate --inclusive=yes {} | grep sandpail_ | head -40\n\
             If it is meant to be:  {RECORD}",
            path.about,
            profile(path).display(),
        );
    }
    let hint = if ratio < LEAST { format!("; that is less: record it, please: {RECORD}") } else { String::new() };
    Ok(format!("ok ({told}{hint})"))
}

/// Another architecture has other instructions, and another profile fewer.
fn kind() -> String {
    let profile = if cfg!(debug_assertions) { "" } else { ", release" };
    format!("{}{profile}", std::env::consts::ARCH)
}

fn counts_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/instructions/counts.json")
}

fn recorded() -> Result<Counts> {
    let file = counts_file();
    match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| file.display().to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Counts::default()),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

fn record(counts: BTreeMap<String, u64>) -> Result<()> {
    println!("{counts:#?}");
    let mut all = recorded()?;
    all.insert(kind(), counts);
    std::fs::write(counts_file(), serde_json::to_string_pretty(&all)? + "\n")?;
    Ok(())
}
