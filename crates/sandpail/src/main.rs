//! The program: arguments, processes, signals, logging.
#![forbid(unsafe_code)]

mod bucket;
mod cache;
mod cli;
mod client;
mod demo;
mod doctor;
mod mount;
mod probe;
mod progress;
mod recover;
mod serve;
mod serving;
mod store;
mod sync;
mod umount;
mod upgrade;

use std::process::ExitCode;

use clap::Parser;
use sandpail_daemon::worker::{self, control, host, profiles, registry, report};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // Parts of sandboxes: before there is a second thread, and without a word of the command line's help.
    match std::env::args_os().nth(1).as_ref().and_then(|argument| argument.to_str()) {
        Some("sandbox-init") => return sandpail_sandbox::init_main(),
        Some("sandbox-agent") => return sandpail_sandbox::agent_main(),
        _ => {}
    }
    let arguments = cli::with_mount_helper_forms(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sandpail: {}", report::in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Mount(arguments) => mount::run(&arguments)?,
        Command::MountWorker => return Ok(worker::main()),
        Command::MountKeeper => return Ok(worker::keeper::main()),
        Command::MountWitness => return Ok(worker::witness::main()),
        Command::Umount(arguments) => return umount::run(&arguments),
        Command::Sync(arguments) => return sync::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments)?,
        Command::Sandbox(arguments) => return client::run(arguments),
        Command::Recover(arguments) => return recover::run(&arguments),
        Command::Cache(arguments) => return cache::run(&arguments),
        Command::List => registry::print_list()?,
        Command::Upgrade(arguments) => return upgrade::run(&arguments),
        Command::Bucket(command) => bucket::run(command)?,
        Command::Doctor(arguments) => return doctor::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments)?,
        Command::Completions { shell } => cli::print_completions(shell),
    }
    Ok(ExitCode::SUCCESS)
}
