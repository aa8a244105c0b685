//! What a forked child of init does to become a command, a terminal's shell, or the file agent.
//!
//! It looks for programs and changes directories itself, so that a file system that hangs holds up only this child.

use std::fs;
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::processes::MARK;
use crate::sys::ChildCode;
use crate::wire::{Program, Start};

/// Codes as shells say them.
const CODE_NOT_FOUND: ChildCode = 127;

/// What a child has as standard input, output and error.
pub(super) enum StandardStreams {
    Pipes([OwnedFd; 3]),
    Terminal {
        inside: OwnedFd,
        /// Where the daemon waits to hear why there is no shell; it closes when the shell runs.
        trouble: Option<OwnedFd>,
    },
}

/// A terminal's two sides.
pub(super) struct Terminal {
    pub(super) inside: OwnedFd,
    pub(super) outside: OwnedFd,
}

/// Opens a new terminal of the sandbox's own set.
pub(super) fn open_terminal(cols: u16, rows: u16) -> io::Result<Terminal> {
    // Not /dev/ptmx, which is a link that the guest may change.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let outside = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&outside)?;
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&outside, size)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let inside = rustix::pty::ioctl_tiocgptpeer(&outside, flags)?;
    Ok(Terminal { inside, outside })
}

/// Runs in the forked child. Returns only if it did not become another program; `tell` says why.
pub(super) fn main(order: &Start, streams: &StandardStreams, tell: &PipeWriter, open_files: u64) -> ChildCode {
    match run(order, streams, open_files) {
        Ok(code) => code,
        Err(trouble) => {
            let mut tell = tell;
            // Init sees the code in any case.
            let _result = tell.write_all(trouble.as_bytes());
            if let StandardStreams::Terminal { trouble: Some(daemon), .. } = streams {
                let _result = rustix::io::write(daemon, trouble.as_bytes());
            }
            CODE_NOT_FOUND
        }
    }
}

fn run(order: &Start, streams: &StandardStreams, open_files: u64) -> Result<ChildCode, String> {
    set_up(streams, open_files).map_err(|error| format!("a new process: {error}"))?;
    if matches!(order.program, Program::Agent) {
        return Ok(run_agent());
    }
    std::env::set_current_dir(&order.cwd)
        .map_err(|error| format!("working directory {}: {}", order.cwd.display(), plain(&error)))?;
    let path = order.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    match &order.program {
        Program::Command { argv } => become_command(order, argv, path),
        Program::Session { argv, state, given, given_count, only, is_cwd_given } => {
            let given = (given.as_slice(), *given_count);
            become_session(order, argv, path, state, given, only, is_cwd_given.then_some(&order.cwd))
        }
        Program::Terminal { shell, state, .. } => become_shell(order, shell.as_deref(), state.as_deref(), path),
        Program::Agent => Ok(0),
    }
}

fn set_up(streams: &StandardStreams, open_files: u64) -> io::Result<()> {
    rustix::process::setsid()?;
    match streams {
        StandardStreams::Pipes([stdin, stdout, stderr]) => {
            rustix::stdio::dup2_stdin(stdin)?;
            rustix::stdio::dup2_stdout(stdout)?;
            rustix::stdio::dup2_stderr(stderr)?;
        }
        StandardStreams::Terminal { inside, .. } => {
            rustix::stdio::dup2_stdin(inside)?;
            rustix::stdio::dup2_stdout(inside)?;
            rustix::stdio::dup2_stderr(inside)?;
            rustix::process::ioctl_tiocsctty(inside)?;
        }
    }
    let limit = Some(open_files);
    Ok(rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?)
}

/// The file agent needs no program of the sandbox's, which may have none.
fn run_agent() -> ChildCode {
    // Without `exec`, nothing else closes init's sockets and its other children's pipes.
    if crate::sys::close_from(3).is_err() || std::env::set_current_dir("/").is_err() {
        return 1;
    }
    let code = crate::agent::agent_main();
    ChildCode::from(code != std::process::ExitCode::SUCCESS)
}

fn become_command(order: &Start, argv: &[String], path: &str) -> Result<ChildCode, String> {
    let [name, arguments @ ..] = argv else { return Err("no command".to_owned()) };
    if let Some(program) = find(name, path) {
        let error = command(&program, order).arg0(name).args(arguments).exec();
        match error.raw_os_error() {
            // A script without a first line that names its interpreter.
            Some(libc::ENOEXEC) => {
                if let Some(shell) = find_shell(path) {
                    let error = command(&shell, order).arg(&program).args(arguments).exec();
                    return Err(format!("{name}: {}", plain(&error)));
                }
            }
            // Shells explain these best.
            Some(libc::ENOENT | libc::EACCES) => {}
            _ => return Err(format!("{name}: {}", plain(&error))),
        }
    }
    // A builtin, or a program that is not there: let a shell say so, with its code.
    let Some(shell) = find_shell(path) else {
        eprintln!("{name}: command not found");
        return Ok(CODE_NOT_FOUND);
    };
    let arg0 = if shell.ends_with("bash") { "bash" } else { "sh" };
    let error = command(&shell, order).args(["-c", "\"$@\"", arg0]).args(argv).exec();
    Err(format!("{}: {}", shell.display(), plain(&error)))
}

fn become_session(
    order: &Start,
    argv: &[String],
    path: &str,
    state: &Path,
    given: (&[(String, String)], u32),
    only: &[(String, String)],
    cwd: Option<&PathBuf>,
) -> Result<ChildCode, String> {
    let has_state = settle(state);
    let Some(shell) = find_shell(path) else {
        // Nothing can keep a state here; the command itself may still run.
        return become_command(order, argv, path);
    };
    let script = if shell.ends_with("bash") { crate::session::BASH } else { crate::session::SH };
    let mut command = command(&shell, order);
    if has_state {
        // The state has all variables; one that was unset must not come back.
        command.env_clear().env(MARK, order.id.to_string());
    }
    command.args(["-c", script, "bash"]).arg(state).arg(cwd.map_or(Path::new(""), |cwd| cwd));
    let (given, count) = given;
    command.arg(count.to_string());
    for variables in [given, only] {
        command.arg(variables.len().to_string()).args(variables.iter().map(|(name, value)| format!("{name}={value}")));
    }
    let error = command.args(argv).exec();
    Err(format!("{}: {}", shell.display(), plain(&error)))
}

/// Puts a newly written state in the place of the old one, if it is whole: a command may have been killed while it wrote.
/// Returns whether there is a state.
fn settle(state: &Path) -> bool {
    let new = state.with_extension("new");
    if fs::read(&new).is_ok_and(|text| text.ends_with(crate::session::END_MARK.as_bytes())) {
        // If that fails, the session goes on with its older state.
        let _result = fs::rename(&new, state);
    }
    fs::symlink_metadata(state).is_ok()
}

fn become_shell(order: &Start, shell: Option<&str>, state: Option<&Path>, path: &str) -> Result<ChildCode, String> {
    let program = match shell {
        Some(shell) => find(shell, path).ok_or_else(|| format!("{shell}: not found"))?,
        None => find_shell(path).ok_or("there is no shell")?,
    };
    let mut command = command(&program, order);
    if program.ends_with("bash") {
        command.args(["--rcfile", "/run/sandpail/bashrc", "-i"]);
    }
    if let Some(state) = state {
        settle(state);
        command.env("SANDPAIL_SESSION_STATE", state);
    }
    Err(format!("{}: {}", program.display(), plain(&command.exec())))
}

fn command(program: &Path, order: &Start) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(order.env.iter().map(|(name, value)| (name, value))).env(MARK, order.id.to_string());
    command
}

/// Finds a program as `execvp` would: by its path, or in the directories of `PATH`.
fn find(name: &str, path: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return is_program(Path::new(name)).then(|| PathBuf::from(name));
    }
    if name.is_empty() {
        return None;
    }
    path.split(':').map(|directory| Path::new(directory).join(name)).find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file())
        && rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn find_shell(path: &str) -> Option<PathBuf> {
    let usual = ["/bin/bash", "/usr/bin/bash", "/bin/sh"].map(PathBuf::from);
    let bash = find("bash", path);
    usual[..2]
        .iter()
        .find(|shell| is_program(shell))
        .cloned()
        .or(bash)
        .or_else(|| Some(usual[2].clone()).filter(|shell| is_program(shell)).or_else(|| find("sh", path)))
}

/// An error's text without the errno's number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}
