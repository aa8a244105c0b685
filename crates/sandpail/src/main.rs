//! The program: arguments, processes, signals, logging.
#![forbid(unsafe_code)]

mod backend;
mod bucket;
mod cli;
mod client;
mod control;
mod demo;
mod doctor;
mod host;
mod mount;
mod probe;
mod profiles;
mod progress;
mod registry;
mod report;
mod umount;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
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
        Command::MountWorker => return Ok(worker::run_from_stdin()),
        Command::Umount(arguments) => return umount::run(&arguments),
        Command::Sandbox(arguments) => return client::run(arguments),
        Command::List => registry::print_list()?,
        Command::Bucket(command) => bucket::run(command)?,
        Command::Doctor(arguments) => return doctor::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments)?,
        Command::Completions { shell } => cli::print_completions(shell),
    }
    Ok(ExitCode::SUCCESS)
}
