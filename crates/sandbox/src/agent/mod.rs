//! File operations that run inside the sandbox.
//!
//! A guest's paths mean something only in the guest's own root, and a guest may change them while they are looked at. So
//! no process of the host follows one: init starts [`agent_main`] as the sandbox's root, inside all its namespaces, and
//! the daemon talks to it over two pipes ([`client::Agent`], [`protocol`]). Whatever a path leads to, the guest could
//! have reached it itself.

mod body;
mod client;
mod files;
mod hydrate;
mod list;
mod persist;
mod protocol;
mod remove;
mod rename;
mod walk;
mod watch;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use body::{BodyReader, BodyWriter};
pub(crate) use client::Agent;
use protocol::{Answer, Failure, FrameKind, Request, from_json, read_frame, write_json};
use rustix::fs::Mode;

/// The program that runs inside the sandbox: serves one request from standard input, and answers on standard output.
/// Fails if the daemon does not keep to the protocol or does not take the answer; a request that fails is no failure.
pub fn agent_main() -> ExitCode {
    // Init may have been started with any; new files are as a shell's.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let served = (|| {
        let stdin = File::from(rustix::stdio::stdin().try_clone_to_owned()?);
        let stdout = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
        serve(stdin, stdout)
    })();
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Why an operation ends early.
#[derive(Debug)]
enum Stop {
    /// It failed; the daemon is to know why.
    Failed(Failure),
    /// The daemon does not listen.
    Gone(io::Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn send(result: io::Result<()>) -> Result<(), Stop> {
    result.map_err(Stop::Gone)
}

fn answer(out: impl Write, answer: &Answer) -> io::Result<()> {
    write_json(out, FrameKind::Json, answer)
}

/// Serves one request.
fn serve(mut stdin: impl Read + AsFd, mut stdout: impl Write) -> io::Result<()> {
    let mut payload = Vec::new();
    if read_frame(&mut stdin, &mut payload)? != FrameKind::Json {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a request was expected"));
    }
    match operate(from_json(&payload)?, stdin, &mut stdout) {
        Ok(()) => Ok(()),
        Err(Stop::Failed(failure)) => write_json(&mut stdout, FrameKind::Failure, &failure),
        Err(Stop::Gone(error)) => Err(error),
    }
}

fn operate(request: Request, stdin: impl Read + AsFd, mut stdout: impl Write) -> Result<(), Stop> {
    let answered = match request {
        Request::Read { path } => return files::read(&path.0, stdout),
        Request::List { path, recursive, hidden } => return list::list(&path.0, recursive, hidden, stdout),
        Request::Watch { path, recursive } => return watch::watch(&path.0, recursive, stdin, stdout),
        Request::Persist { root, excludes } => return persist::persist(&root.0, &excludes, stdout),
        Request::Write { path } => receive(stdin, |body| files::write(&path.0, body))?,
        Request::Hydrate { root, limit } => receive(stdin, |body| hydrate::hydrate(&root.0, limit, body))?,
        Request::Stat { path } => files::stat(&path.0)?,
        Request::Exists { path } => files::exists(&path.0)?,
        Request::MakeDirectory { path, parents } => files::make_directory(&path.0, parents)?,
        Request::MakeMountpoint { path } => files::make_mountpoint(&path.0)?,
        Request::RemoveMountpoint { path, made } => files::remove_mountpoint(&path.0, &made.0)?,
        Request::Delete { path, recursive } => remove::delete(&path.0, recursive)?,
        Request::Rename { from, to } => rename::rename(&from.0, &to.0)?,
    };
    send(answer(&mut stdout, &answered))
}

/// Runs what takes a body. If the body broke, that is the reason, whatever came of it.
fn receive<R: Read>(stdin: R, take: impl FnOnce(&mut BodyReader<R>) -> Result<(), Failure>) -> Result<Answer, Failure> {
    let mut body = BodyReader::new(stdin);
    match take(&mut body) {
        Ok(()) => Ok(Answer::Done),
        Err(_) if body.is_broken() => Err(Failure::Aborted),
        Err(failure) => Err(failure),
    }
}
