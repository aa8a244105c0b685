//! `sandpail mount`: checks everything, starts the worker, and returns when the mount answers.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;

use anyhow::{Context, bail};

use sandpail_daemon::worker::backend::{self, Source};
use sandpail_daemon::worker::start::Given;
use sandpail_daemon::worker::{self, Begin, Conflict, FAILED, Place, Plan, READY, WriteBackPlan, keeper};

use sandpail_spec::{PathClass, PathClasses};

use crate::cli::{ConflictArg, MetadataArg, MountArgs};
use crate::progress::Waiting;
use crate::{host, registry, store};

pub(crate) fn run(arguments: &MountArgs) -> anyhow::Result<()> {
    let arguments = match arguments.clone().with_options() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    host::check_fuse()?;
    let plan = plan(&arguments)?;
    let Place::Host { mountpoint, .. } = &plan.place else { bail!("no mountpoint") };
    if arguments.foreground {
        let ready = || {
            println!("mounted on {}", mountpoint.display());
            Ok(())
        };
        return if plan.survives { keeper::keep(&plan, ready) } else { worker::run(&plan, Begin::Mount, ready) };
    }
    let mut worker = start(&plan)?;
    let waiting = Waiting::start(&format!("mounting {}", plan.shown_source()));
    let line = first_line(&mut worker);
    drop(waiting);
    match line?.as_str() {
        READY => {}
        line => {
            let _ = worker.wait();
            bail!("{}", line.strip_prefix(FAILED).unwrap_or(line));
        }
    }
    // The truth is what the kernel shows, not what the worker says.
    let answers = std::fs::read_dir(mountpoint).map(drop);
    let is_there = host::sandpail_mount(mountpoint).is_some();
    if is_there && answers.is_ok() {
        note_kept(&plan.staging_dir, arguments.staging_dir.is_some());
        return Ok(());
    }
    let _ = worker.kill();
    let _ = worker.wait();
    let _ = host::unmount(mountpoint, true);
    match answers {
        Err(error) => bail!("the mount on {} does not answer: {error}", mountpoint.display()),
        Ok(()) => bail!("the mount on {} was gone at once", mountpoint.display()),
    }
}

/// Everything that can be wrong with the arguments is found here, before anything exists.
fn plan(arguments: &MountArgs) -> anyhow::Result<Plan> {
    if arguments.io_uring && !arguments.no_restart {
        bail!("--io-uring needs --no-restart: such a mount cannot go on with another process");
    }
    let path_classes = PathClasses::parse(&arguments.path_classes, arguments.agent)?;
    let (source, source_prefix) = Source::parse(&arguments.source)?;
    let prefix = match (&arguments.prefix, source_prefix) {
        (Some(_), Some(_)) => bail!("give the prefix once: in the source or as --prefix"),
        (Some(prefix), None) => prefix.clone(),
        (None, prefix) => prefix.unwrap_or_default(),
    };
    if let Source::Directory(path) = &source {
        backend::open_directory(path)?;
    }
    let store = match &source {
        Source::Bucket(_) => Some(store::remote_plan(&arguments.store)?),
        Source::Directory(_) => None,
    };
    let umask = arguments.umask.unwrap_or(0);
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ok(Plan {
        source,
        store,
        prefix: prefix.as_str().to_owned(),
        place: Place::Host {
            mountpoint: host::check_mountpoint(&arguments.mountpoint)?,
            allow_other: arguments.allow_other,
            kernel_options: arguments.kernel_options.clone(),
        },
        read_only: arguments.read_only,
        posix_metadata: arguments.metadata != MetadataArg::None,
        trusts_listings: arguments.metadata == MetadataArg::Auto,
        metadata_ttl: arguments.metadata_ttl,
        uid: arguments.uid.unwrap_or(me.0),
        gid: arguments.gid.unwrap_or(me.1),
        file_perm: arguments.file_mode.unwrap_or(0o644) & !umask,
        dir_perm: arguments.dir_mode.unwrap_or(0o755) & !umask,
        on_conflict: match arguments.on_conflict {
            ConflictArg::Overwrite => Conflict::Overwrite,
            ConflictArg::Fail => Conflict::Fail,
            ConflictArg::KeepBoth => Conflict::KeepBoth,
        },
        part_len: arguments.part_size,
        multipart: true,
        parallel_parts: None,
        memory_limit: arguments.memory_limit,
        staging_dir: match &arguments.staging_dir {
            Some(dir) => std::path::absolute(dir)?,
            None => registry::state_directory().context("give --staging-dir")?.join("staging"),
        },
        staging_limit: arguments.staging_limit,
        cache: match &arguments.cache_dir {
            Some(dir) => Some((std::path::absolute(dir)?, arguments.cache_size)),
            None => None,
        },
        status: !arguments.no_status,
        op_timeout: Some(arguments.op_timeout).filter(|limit| !limit.is_zero()),
        survives: !arguments.no_restart,
        io_uring: arguments.io_uring,
        write_back: (arguments.write_back || path_classes.gives(PathClass::WriteBack))
            .then_some(WriteBackPlan { bytes_max: arguments.write_back_limit, age_max: arguments.write_back_age }),
        write_back_by_default: arguments.write_back,
        path_classes,
        tenant: None,
        log: arguments.log.clone(),
        log_file: arguments.log_file.as_ref().map(std::path::absolute).transpose()?,
    })
}

/// Says what earlier mounts have left.
fn note_kept(staging: &Path, is_chosen: bool) {
    let count = sandpail_fs::recover::count(staging);
    if count > 0 {
        let more = if is_chosen { format!(" --staging-dir {}", staging.display()) } else { String::new() };
        eprintln!(
            "sandpail: note: {count} file(s) of earlier mounts were not stored; see: sandpail recover list{more}"
        );
    }
}

/// A worker, or its keeper, that is killed unless it is let go.
fn start(plan: &Plan) -> anyhow::Result<Child> {
    registry::prune();
    let argument = if plan.survives { keeper::ARGUMENT } else { worker::ARGUMENT };
    let (mut command, socket) = worker::start::command(&worker::start::own_program()?, argument)?;
    let mut worker = command.spawn().context("cannot start the mount's process")?;
    // The worker's end of the socket is in there.
    drop(command);
    if let Err(error) = worker::start::hand_plan(&socket, plan, Given::Nothing) {
        let _ = worker.kill();
        let _ = worker.wait();
        return Err(error);
    }
    Ok(worker)
}

fn first_line(worker: &mut Child) -> anyhow::Result<String> {
    let mut line = String::new();
    let output = worker.stdout.take().context("no pipe")?;
    let read = BufReader::new(output).read_line(&mut line);
    if read.is_err() || line.is_empty() {
        let _ = worker.kill();
        let status = worker.wait()?;
        bail!("the mount's process ended before the mount was there ({status})");
    }
    Ok(line.trim_end().to_owned())
}
