//! Finding all that came from a command, to end it.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Signal};

/// Names the command that a process came from, in its environment. A process that left its group, its session and its
/// parents is still found by it. One that also cleans its environment is not: it lives until the sandbox ends.
pub(super) const MARK: &str = "SANDPAIL_COMMAND";

/// Rounds of looking for what was forked while others were killed.
const ROUND_COUNT_MAX: u32 = 20;

/// Kills a command with all its descendants.
pub(super) fn kill_all_of(leader: Pid, id: u64) {
    let leader = leader.as_raw_nonzero().get();
    for _ in 0..ROUND_COUNT_MAX {
        let found = family(leader, &format!("{MARK}={id}"), &all());
        if found.is_empty() {
            return;
        }
        for pid in found {
            if let Some(pid) = Pid::from_raw(pid) {
                // It may have ended by itself, which is as good.
                let _result = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    is_dead: bool,
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid > 1)
        .filter_map(|pid| parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// Reads `/proc/PID/stat`. The name in parentheses may hold anything, parentheses too.
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let pid = head.split(' ').next()?.parse().ok()?;
    let mut fields = tail.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse().ok();
    Some(Process { pid, parent: number()?, group: number()?, session: number()?, is_dead })
}

/// The living processes that belong to `leader`.
fn family(leader: i32, mark: &str, all: &[Process]) -> BTreeSet<i32> {
    let mut members: BTreeSet<i32> = [leader].into();
    loop {
        let before = members.len();
        for process in all {
            let is_member = process.session == leader
                || process.group == leader
                || members.contains(&process.parent)
                || (!members.contains(&process.pid) && has_mark(process.pid, mark));
            if is_member {
                members.insert(process.pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    all.iter().filter(|process| members.contains(&process.pid) && !process.is_dead).map(|process| process.pid).collect()
}

fn has_mark(pid: i32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let expected = Process { pid: 7, parent: 3, group: 5, session: 4, is_dead: false };
        assert_eq!(parse("7 (a) b (c)) S 3 5 4 0 -1"), Some(expected));
        assert_eq!(parse("8 (x) Z 3 5 4 0").map(|process| process.is_dead), Some(true));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn a_family_is_group_session_and_descendants() {
        let process = |pid, parent, group, session| Process { pid, parent, group, session, is_dead: false };
        let all = [
            process(100_000_010, 1, 100_000_010, 100_000_010),
            process(100_000_011, 100_000_010, 100_000_010, 100_000_010),
            process(100_000_012, 1, 100_000_012, 100_000_010),
            process(100_000_013, 100_000_012, 100_000_013, 100_000_013),
            process(100_000_014, 1, 100_000_014, 100_000_014),
        ];
        let expected = [100_000_010, 100_000_011, 100_000_012, 100_000_013].into();
        assert_eq!(family(100_000_010, "SANDPAIL_COMMAND=1", &all), expected);
    }
}
