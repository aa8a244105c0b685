//! System calls as `strace` tells them.
//!
//! Calls of several threads overlap. They are given in the order in which they returned; each says how many had
//! returned when it was made, so that a sync can be held to what was done before it began, and nothing later.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

/// What is followed: all that changes files, and what tells which file a descriptor is. Calls that change files and
/// that [`super::replay`] does not know are followed as well, so that it can refuse them.
const CALLS: &str = "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,copy_file_range,sendfile,splice,\
    truncate,ftruncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,\
    mknod,mknodat,rmdir,fsync,fdatasync,sync_file_range,syncfs,sync,close,close_range,dup,dup2,dup3,fcntl,lseek,\
    io_uring_setup";

/// A system call that returned.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    /// What it returned, -1 for any error.
    pub(crate) result: i64,
    /// How many calls had returned when this one was made.
    pub(crate) made_after: usize,
}

/// Runs a program and writes its calls to `trace`. With `kill_at`, each of its threads that comes to its fsync of that
/// number is killed, and the process with it.
pub(crate) fn run(program: &mut Command, kill_at: Option<u64>, trace: &Path) -> Output {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-xx", "-s", "100000000", "-e"]).arg(format!("trace={CALLS}"));
    // Some syncs take their time, in microseconds, so that other threads meet what is not synced yet.
    let injected = kill_at.map_or("delay_enter=15000:when=2+3".into(), |number| format!("signal=KILL:when={number}"));
    strace.args(["-e", &format!("inject=fsync:{injected}")]);
    strace.arg("-o").arg(trace).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        strace.env(name, value.unwrap_or_default());
    }
    let output = strace.output().unwrap_or_else(|error| {
        panic!("this test follows system calls with strace, which cannot be started: {error}\n(scripts/setup test installs it)")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !said.contains("ptrace(") && !said.contains("PTRACE_"),
        "this test follows system calls with strace, which may not trace here; allow ptrace (in a container: \
         --cap-add SYS_PTRACE, or a seccomp profile that lets it through; see also kernel.yama.ptrace_scope):\n{said}"
    );
    output
}

/// Reads what [`run`] wrote.
pub(crate) fn parse(text: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut begun: HashMap<&str, (&str, usize)> = HashMap::new();
    for line in text.lines() {
        let (thread, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no trace: {line:?}"));
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (head, calls.len()));
            continue;
        }
        let resumed = rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"));
        let (whole, made_after) = match resumed {
            Some((_, tail)) => {
                let (head, made_after) = begun.remove(thread).unwrap_or_else(|| panic!("never begun: {line:?}"));
                (format!("{head}{tail}"), made_after)
            }
            None => (rest.to_owned(), calls.len()),
        };
        calls.extend(call(&whole, made_after));
    }
    calls
}

fn call(text: &str, made_after: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(').unwrap_or_else(|| panic!("not a call: {text:?}"));
    let at = rest.rfind(" = ").unwrap_or_else(|| panic!("no result: {text:?}"));
    let result = rest[at + 3..].split(' ').next().unwrap_or_default();
    // A call that never returned, as its thread died. (Whether it did something is not known; what is killed here is
    // killed before it syncs.)
    if result == "?" {
        return None;
    }
    let parsed = match result.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => result.parse(),
    };
    let result = parsed.unwrap_or_else(|_| panic!("result {result:?}: {text:?}"));
    let args = rest[..at].trim_end().strip_suffix(')').unwrap_or_else(|| panic!("no end: {text:?}"));
    Some(Call { name: name.to_owned(), args: split(args), result, made_after })
}

/// Cuts at the commas that stand in no brackets and no string.
fn split(args: &str) -> Vec<String> {
    let (mut parts, mut depth, mut quoted, mut start) = (Vec::new(), 0, false, 0);
    for (at, byte) in args.bytes().enumerate() {
        match byte {
            // Strings are all `\xNN`, so none holds a quote.
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth -= 1,
            b',' if !quoted && depth == 0 => {
                parts.push(args[start..at].trim().to_owned());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(args[start..].trim().to_owned());
    parts
}

/// The bytes of all strings in `arg`, in order.
pub(crate) fn bytes(arg: &str) -> Vec<u8> {
    assert!(!arg.contains("\"..."), "a string was cut");
    let strings = arg.split('"').skip(1).step_by(2);
    let digit = |byte: u8| u8::try_from((byte as char).to_digit(16).unwrap()).unwrap();
    strings
        .flat_map(|string| string.as_bytes().chunks_exact(4).map(|chunk| digit(chunk[2]) << 4 | digit(chunk[3])))
        .collect()
}

/// A number, also the first one of `[1 => 2]`.
pub(crate) fn number(arg: &str) -> i64 {
    let digits: String = arg.trim_start_matches('[').chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
    digits.parse().unwrap_or_else(|_| panic!("no number: {arg:?}"))
}
