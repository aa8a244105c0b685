//! The program that waits for an answer, and whether a signal has told it to end.
//!
//! The kernel says so, too: `FUSE_INTERRUPT`. This looks at `/proc` instead, for two reasons.
//!
//! - The message does not say which signal came. Programs that are sent `SIGCHLD`, `SIGALRM`, `SIGPROF` or `SIGURG` all the
//!   time (shells, profilers, Go) would see `EINTR` from files, which no local file system gives them.
//! - It comes for each request that is interrupted, and there may be many. `sandpail-fuse` answers the first one with `ENOSYS`;
//!   the kernel then sends none any more.
//!
//! So whoever has waited for [`patience`](crate::patience) is looked at now and then; who is answered sooner, as nearly all
//! are, pays nothing. A program that is let go gets `EINTR`, which it does not see if it was killed. The number of a process
//! is that of the mount's pid namespace; 0, or one that is not found, waits for the mount's time for an operation.
//!
//! For pages it is the other way round. The kernel holds them locked until it is answered, and who wants to cut the file or to
//! drop its pages waits for them where no signal reaches. So nothing is fetched for a program that is gone: whoever else
//! waits for such a page asks for it again.

use std::fs::read_to_string;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

const SIGHUP: u64 = 1;
const SIGINT: u64 = 1 << 1;
const SIGQUIT: u64 = 1 << 2;
const SIGABRT: u64 = 1 << 5;
const SIGKILL: u64 = 1 << 8;
const SIGTERM: u64 = 1 << 14;
/// What tells a program to end. The kernel makes `SIGKILL` of those that end it without a core dump.
const ENDING: u64 = SIGHUP | SIGINT | SIGQUIT | SIGABRT | SIGTERM;
/// `PF_SIGNALED`: the task was ended by a signal.
const SIGNALED: u64 = 0x400;
/// Where the flags stand in `/proc/PID/stat`, counted from the state, which comes after the name.
const FLAGS_AT: usize = 6;

/// What the kernel does with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// It gives it to the caller; to another of its threads, perhaps, if it does not wait where it asked.
    Answer,
    /// It tells the caller what became of a file that is closed. One that was ended by a signal does not hear it.
    Close,
    /// It fills its pages. They may be asked for ahead, by a caller that does not wait for them.
    Pages,
}

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// The thread; 0 if it is none of ours.
    task: u32,
}

impl Caller {
    pub(super) fn new(task: u32) -> Self {
        Self { task }
    }

    /// Whether it is to end and waits only for us, or is gone and nobody else needs the answer.
    pub(super) fn leaves(self, wants: Want) -> bool {
        if self.task == 0 {
            return false;
        }
        let Ok(status) = read_to_string(format!("/proc/{}/status", self.task)) else {
            return wants == Want::Pages && self.is_gone();
        };
        match wish_of(&status) {
            Wish::Leave => true,
            // Whoever waits for a page of a mapping would be sent SIGBUS instead.
            Wish::LeaveCall => self.is_in_call(),
            Wish::Stay => match wants {
                Want::Answer => false,
                Want::Close => self.was_ended(),
                Want::Pages => is_dead(&status),
            },
        }
    }

    /// Whether there is none. Others may be hidden in `/proc`, or that of other namespaces be mounted there.
    fn is_gone(self) -> bool {
        let task = i32::try_from(self.task).ok().and_then(Pid::from_raw);
        task.is_some_and(|task| test_kill_process(task) == Err(Errno::SRCH))
    }

    fn was_ended(self) -> bool {
        read_to_string(format!("/proc/{}/stat", self.task)).is_ok_and(|stat| is_signaled(&stat))
    }

    fn is_in_call(self) -> bool {
        // In a page fault the number of the system call is -1.
        let number = read_to_string(format!("/proc/{}/syscall", self.task));
        number.is_ok_and(|number| is_of_call(&number))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stay,
    /// It handles a signal itself, when it comes back from its system call.
    LeaveCall,
    /// It is ended, whatever the call gives.
    Leave,
}

/// What the signals of a task ask for, from the text of its `/proc/PID/status`.
fn wish_of(status: &str) -> Wish {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
    };
    let (own, blocked, ignored, caught) = (set("SigPnd"), set("SigBlk"), set("SigIgn"), set("SigCgt"));
    let pending = (own | set("ShdPnd")) & ENDING & !blocked & !ignored;
    if own & SIGKILL != 0 || pending & !caught != 0 {
        Wish::Leave
    } else if pending != 0 {
        Wish::LeaveCall
    } else {
        Wish::Stay
    }
}

/// Whether the text of `/proc/PID/status` is that of a task that has ended and was not waited for.
fn is_dead(status: &str) -> bool {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with(['Z', 'X']))
}

/// Whether the text of `/proc/PID/syscall` is that of a task that waits in a system call.
fn is_of_call(syscall: &str) -> bool {
    syscall.starts_with(|first: char| first.is_ascii_digit())
}

fn is_signaled(stat: &str) -> bool {
    // The name may hold blanks and parentheses.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = rest.split_ascii_whitespace().nth(FLAGS_AT).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & SIGNALED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGALRM: u64 = 1 << 13;
    const SIGCHLD: u64 = 1 << 16;
    const SIGURG: u64 = 1 << 22;

    #[test]
    fn only_signals_that_end_a_program_let_it_go() {
        // What is pending for the thread and for its process, blocked, ignored, caught.
        let cases = [
            (SIGKILL, 0, 0, 0, 0, Wish::Leave, "kill -9"),
            (SIGKILL, SIGINT, 0, 0, 0, Wish::Leave, "Ctrl-C"),
            (0, SIGINT, 0, 0, SIGINT, Wish::LeaveCall, "Ctrl-C of a program that handles it"),
            (0, SIGTERM, 0, 0, SIGTERM, Wish::LeaveCall, "kill of such a program"),
            (0, SIGQUIT, 0, 0, 0, Wish::Leave, "a core dump"),
            (0, SIGINT, SIGINT, 0, SIGINT, Wish::Stay, "blocked"),
            (0, SIGHUP, 0, SIGHUP, 0, Wish::Stay, "nohup"),
            (SIGURG, SIGALRM | SIGCHLD, 0, 0, SIGALRM | SIGURG, Wish::Stay, "what comes all the time"),
            (0, 0, 0, 0, ENDING, Wish::Stay, "nothing"),
        ];
        for (own, shared, blocked, ignored, caught, wish, what) in cases {
            let status = format!(
                "Name:\tcat\nState:\tD (disk sleep)\nSigQ:\t1/1\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t0\n"
            );
            assert_eq!(wish_of(&status), wish, "{what}");
        }
        assert_eq!(wish_of(""), Wish::Stay);
    }

    #[test]
    fn a_task_that_a_signal_has_ended_is_known_by_its_flags() {
        let stat = |flags: u64| format!("7 (a) b (c) S 1 7 7 0 -1 {flags} 100 0 0 0");
        assert!(is_signaled(&stat(0x404)));
        assert!(!is_signaled(&stat(0x4)), "it has ended by itself");
        assert!(!is_signaled("7 (cat"));
    }

    #[test]
    fn this_program_stays() {
        for wants in [Want::Answer, Want::Close, Want::Pages] {
            assert!(!Caller::new(std::process::id()).leaves(wants));
            assert!(!Caller::new(0).leaves(wants));
        }
    }

    #[test]
    fn pages_are_not_fetched_for_one_that_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let caller = Caller::new(child.id());
        let leaves = || [Want::Answer, Want::Pages].map(|wants| caller.leaves(wants));
        assert_eq!(leaves(), [false, false]);
        child.kill().unwrap();
        while !is_dead(&read_to_string(format!("/proc/{}/status", child.id())).unwrap()) {
            std::thread::yield_now();
        }
        assert!(caller.leaves(Want::Pages), "it was not waited for");
        child.wait().unwrap();
        assert_eq!(leaves(), [false, true], "nothing is known of it");
    }

    #[test]
    fn a_page_fault_is_no_call() {
        assert!(is_of_call("0 0x3 0x7ffd 0x1000 0x0 0x0 0x0 0x7ffd 0x7f00\n"));
        assert!(!is_of_call("-1 0x7ffd 0x7f00\n"), "it waits for a page");
        assert!(!is_of_call("running\n"));
    }
}
