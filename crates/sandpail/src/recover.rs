//! `sandpail recover`: what mounts that died, or ended without their store, have left.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use sandpail_daemon::worker::backend;
use sandpail_fs::FsError;
use sandpail_fs::recover::{Damage, KeptFile, KeptFiles, PutBack};
use sandpail_fs::write::{Origin, RangeSet};
use sandpail_store::Store;
use serde_json::json;

use crate::cli::{RecoverArgs, RecoverCommand, StoreArgs, Which};
use crate::progress::Waiting;
use crate::{registry, report, store};

pub(crate) fn run(arguments: &RecoverArgs) -> anyhow::Result<ExitCode> {
    let dir = match &arguments.staging_dir {
        Some(dir) => {
            ensure!(dir.is_dir(), "staging directory {} does not exist", dir.display());
            std::path::absolute(dir)?
        }
        None => registry::state_directory().context("give --staging-dir")?.join("staging"),
    };
    let kept = KeptFiles::open(&dir)?;
    let files = kept.as_ref().map_or_else(|| Ok(Vec::new()), KeptFiles::list)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match (&arguments.command, kept) {
        (RecoverCommand::List { json }, _) => {
            if *json {
                print_json(&files)?
            } else {
                print_table(&files, &dir)?
            }
            Ok(ExitCode::SUCCESS)
        }
        (RecoverCommand::Upload { which, store, damaged }, Some(kept)) => {
            let mut stores = Stores { arguments: store, made: HashMap::new() };
            let damage = if *damaged { Damage::Accept } else { Damage::Refuse };
            each(&chosen(&files, which)?, |file| runtime.block_on(upload(&kept, file, damage, &mut stores)))
        }
        (RecoverCommand::Discard { which, yes }, Some(kept)) => {
            let files = chosen(&files, which)?;
            ensure!(!which.all || *yes, "this removes {} file(s) for good; say --all --yes", files.len());
            each(&files, |file| {
                kept.discard(file)?;
                Ok(format!("{} is removed", name_of(file)))
            })
        }
        (RecoverCommand::Export { id, file, raw, store, damaged }, Some(kept)) => {
            let mut stores = Stores { arguments: store, made: HashMap::new() };
            let of = find(&files, id)?;
            let damage = if *damaged { Damage::Accept } else { Damage::Refuse };
            let size = runtime.block_on(export(&kept, of, file, (*raw, damage), &mut stores))?;
            println!("{}: {size} bytes of {}", file.display(), name_of(of));
            Ok(ExitCode::SUCCESS)
        }
        (RecoverCommand::Upload { which, .. } | RecoverCommand::Discard { which, .. }, None) if which.all => {
            println!("nothing is kept in {}", dir.display());
            Ok(ExitCode::SUCCESS)
        }
        (_, None) => bail!("nothing is kept in {}", dir.display()),
    }
}

/// Does something to each file, and says what came of it.
fn each(files: &[&KeptFile], mut work: impl FnMut(&KeptFile) -> anyhow::Result<String>) -> anyhow::Result<ExitCode> {
    let mut failed = 0;
    for file in files {
        match work(file) {
            Ok(done) => println!("{}  {done}", file.id),
            Err(error) => {
                failed += 1;
                eprintln!("sandpail: {} ({}): {}", file.id, name_of(file), report::in_one_line(&error));
            }
        }
    }
    if failed > 0 {
        eprintln!("sandpail: {failed} of {} file(s) are still kept", files.len());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen<'a>(files: &'a [KeptFile], which: &Which) -> anyhow::Result<Vec<&'a KeptFile>> {
    if which.all {
        return Ok(files.iter().collect());
    }
    let mut found: Vec<&KeptFile> = Vec::new();
    for id in &which.ids {
        let file = find(files, id)?;
        if !found.iter().any(|other| other.path == file.path) {
            found.push(file);
        }
    }
    Ok(found)
}

fn find<'a>(files: &'a [KeptFile], id: &str) -> anyhow::Result<&'a KeptFile> {
    ensure!(!id.is_empty(), "an id must not be empty");
    let mut found = files.iter().filter(|file| file.id.starts_with(id));
    match (found.next(), found.next()) {
        (Some(file), None) => Ok(file),
        (Some(_), Some(_)) => bail!("id {id:?} is the beginning of several; see: sandpail recover list"),
        (None, _) => bail!("no kept file has the id {id:?}; see: sandpail recover list"),
    }
}

/// Stores by where files belong; each is made once.
struct Stores<'a> {
    arguments: &'a StoreArgs,
    made: HashMap<String, Arc<dyn Store>>,
}

impl Stores<'_> {
    fn of(&mut self, origin: &Origin) -> anyhow::Result<Arc<dyn Store>> {
        let name = serde_json::to_string(origin)?;
        if let Some(store) = self.made.get(&name) {
            return Ok(Arc::clone(store));
        }
        let made = match (&origin.bucket, &origin.directory) {
            (Some(bucket), _) => store::remote_plan(&arguments_for(self.arguments, origin)?)?.store(bucket)?,
            (None, Some(directory)) => backend::open_directory(directory)?,
            (None, None) => bail!("its record does not say which bucket it belongs to; export it"),
        };
        self.made.insert(name, Arc::clone(&made));
        Ok(made)
    }
}

/// The arguments, with what the mount had where they say nothing.
fn arguments_for(arguments: &StoreArgs, origin: &Origin) -> anyhow::Result<StoreArgs> {
    let mut arguments = arguments.clone();
    if arguments.endpoint.is_none()
        && let Some(endpoint) = &origin.endpoint
    {
        arguments.endpoint = Some(endpoint.parse()?);
        if arguments.provider.is_none() {
            arguments.provider = origin.provider.as_ref().map(|provider| provider.parse()).transpose()?;
        }
        if !arguments.path_style && !arguments.virtual_host {
            arguments.path_style = origin.path_style == Some(true);
            arguments.virtual_host = origin.path_style == Some(false);
        }
    }
    arguments.region = arguments.region.or_else(|| origin.region.clone());
    Ok(arguments)
}

async fn upload(kept: &KeptFiles, file: &KeptFile, damage: Damage, stores: &mut Stores<'_>) -> anyhow::Result<String> {
    let origin = &file.recorded().map_err(without_record)?.origin;
    let store = stores.of(origin)?;
    let waiting = Waiting::start(&format!("storing {}", name_of(file)));
    let done = kept.upload(file, store, damage).await;
    drop(waiting);
    Ok(match done.map_err(advice)? {
        PutBack::Stored { key } => format!("{} is stored", shown(origin, key.as_str())),
        PutBack::WasRemoved { key } => format!("{} was removed before its process died", shown(origin, key.as_str())),
        PutBack::WasStored { key } => format!("{} was stored already", shown(origin, key.as_str())),
        PutBack::Beside { key } if damage == Damage::Accept => {
            format!("there is another object of that name; both are kept, this one as {}", shown(origin, key.as_str()))
        }
        PutBack::Beside { key } => {
            format!("the object was changed since; both are kept, this one as {}", shown(origin, key.as_str()))
        }
    })
}

async fn export(
    kept: &KeptFiles,
    file: &KeptFile,
    to: &Path,
    (raw, damage): (bool, Damage),
    stores: &mut Stores<'_>,
) -> anyhow::Result<u64> {
    let context = || format!("cannot write {}", to.display());
    ensure!(!to.exists(), "{} exists already", to.display());
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Whole or not there.
    let mut new = tempfile::NamedTempFile::new_in(parent).with_context(context)?;
    let waiting = Waiting::start(&format!("writing {}", to.display()));
    let size = if raw {
        kept.export_raw(file, new.as_file_mut())?
    } else {
        let recorded = file.recorded().map_err(without_record)?;
        let in_base = recorded.in_base();
        let store = if in_base > 0 {
            let what = || {
                format!("{in_base} bytes that were not written must come from the bucket, whose store cannot be used")
            };
            Some(stores.of(&recorded.origin).with_context(what)?)
        } else {
            None
        };
        kept.export(file, store, new.as_file(), damage).await.map_err(advice)?
    };
    drop(waiting);
    finish(new, to).with_context(context)?;
    Ok(size)
}

fn finish(new: tempfile::NamedTempFile, to: &Path) -> std::io::Result<()> {
    new.as_file().sync_all()?;
    let file: File = new.persist_noclobber(to).map_err(|error| error.error)?;
    drop(file);
    Ok(())
}

fn without_record(error: FsError) -> anyhow::Error {
    anyhow::anyhow!("{error}; its bytes can be had with export --raw")
}

fn advice(error: FsError) -> anyhow::Error {
    match error {
        FsError::Changed { what } => anyhow::anyhow!(
            "{what} was changed or removed since; the bytes that were written can be had with export --raw, where they \
             are is in list --json"
        ),
        FsError::InUpload { what } => anyhow::anyhow!(
            "part of {what} is only in an unfinished upload in the bucket, which nobody can read; upload it"
        ),
        FsError::Damaged { .. } => {
            anyhow::anyhow!("{error}; it is kept. With --damaged it is taken as it is; it replaces no object then")
        }
        FsError::Invalid { what } => anyhow::anyhow!(what),
        other => other.into(),
    }
}

fn shown(origin: &Origin, key: &str) -> String {
    // A key may hold what moves a terminal's cursor.
    format!("{origin}/{}", key.escape_debug())
}

fn name_of(file: &KeptFile) -> String {
    match &file.record {
        Ok(recorded) => shown(&recorded.origin, recorded.key.as_str()),
        Err(_) => file.path.file_name().unwrap_or_default().to_string_lossy().escape_debug().to_string(),
    }
}

fn print_table(files: &[KeptFile], dir: &Path) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if files.is_empty() {
        writeln!(out, "nothing is kept in {}", dir.display())?;
        return Ok(());
    }
    writeln!(out, "{:<8}  {:>14}  {:>14}  {:>12}  {:<12}  FILE", "ID", "STAGED", "SIZE", "WHEN", "BASE")?;
    for file in files {
        let (size, base) = match &file.record {
            Ok(recorded) => {
                let etag = recorded.replaces.as_ref().map_or("new", |etag| etag.as_str());
                (recorded.size.to_string(), etag.chars().take(12).collect())
            }
            Err(_) => ("?".to_owned(), "?".to_owned()),
        };
        let (id, staged, when, name) = (&file.id, file.staged_len(), age(file.modified), name_of(file));
        writeln!(out, "{id:<8}  {staged:>14}  {size:>14}  {when:>12}  {base:<12}  {name}")?;
        for note in notes(file)? {
            writeln!(out, "{:10}{note}", "")?;
        }
    }
    Ok(())
}

/// What else there is to say.
fn notes(file: &KeptFile) -> anyhow::Result<Vec<String>> {
    let recorded = match &file.record {
        Ok(recorded) => recorded,
        Err(problem) => return Ok(vec![format!("{problem}; export --raw gives its bytes")]),
    };
    let mut notes: Vec<String> = recorded.reason.iter().map(|reason| reason.escape_debug().to_string()).collect();
    if recorded.missing(file.data_len) > 0 {
        notes.push(format!("{} bytes that were written are lost", recorded.missing(file.data_len)));
    } else if recorded.is_doubtful() {
        notes.push("the machine stopped since: bytes that were written last may be missing".to_owned());
    }
    if !recorded.in_upload.is_empty() {
        notes.push(format!("{} bytes are in an unfinished upload in the bucket", recorded.in_upload.len()));
    }
    let damaged = file.damaged()?;
    if let Some(first) = damaged.iter().next() {
        notes.push(format!(
            "DAMAGED on the disk: {} bytes are not what was written, the first from {} to {}; upload and export refuse it \
             without --damaged",
            damaged.len(),
            first.start,
            first.end
        ));
    }
    Ok(notes)
}

fn age(time: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

fn print_json(files: &[KeptFile]) -> anyhow::Result<()> {
    let extents = |set: &RangeSet| set.iter().map(|range| json!([range.start, range.end])).collect::<Vec<_>>();
    let all = files
        .iter()
        .map(|file| {
            let damaged = file.damaged()?;
            let modified = file.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let mut entry = json!({
                "id": file.id, "path": file.path.to_string_lossy(), "modified": modified, "staged": file.staged_len(),
            });
            let more = match &file.record {
                Ok(recorded) => json!({
                    "key": recorded.key.as_str(),
                    "bucket": recorded.origin.bucket,
                    "endpoint": recorded.origin.endpoint,
                    "directory": recorded.origin.directory.as_ref().map(|path: &PathBuf| path.to_string_lossy()),
                    "prefix": recorded.origin.prefix,
                    "size": recorded.size,
                    "created": recorded.created / 1000,
                    "replaces": recorded.replaces.as_ref().map(|etag| etag.as_str()),
                    "base": recorded.base.as_ref().map(|base| json!({
                        "key": base.version.key.as_str(), "etag": base.version.etag.as_str(), "size": base.version.size,
                        "below": base.limit, "needed": recorded.in_base(),
                    })),
                    "extents": extents(&recorded.local),
                    "in_upload": extents(&recorded.in_upload),
                    "lost": recorded.missing(file.data_len),
                    "damaged": extents(&damaged),
                    "doubtful": recorded.is_doubtful(),
                    "reason": recorded.reason,
                }),
                Err(problem) => json!({ "problem": problem.to_string() }),
            };
            if let (Some(entry), serde_json::Value::Object(more)) = (entry.as_object_mut(), more) {
                entry.extend(more);
            }
            Ok(entry)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn store_arguments(line: &str) -> StoreArgs {
        let line = format!("sandpail recover upload --all {line}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Recover(RecoverArgs { command: RecoverCommand::Upload { store, .. }, .. }) => *store,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_mounts_endpoint_is_used_unless_another_is_given() {
        let origin = Origin {
            endpoint: Some("http://h:1".to_owned()),
            provider: Some("minio".to_owned()),
            region: Some("r".to_owned()),
            path_style: Some(true),
            ..Origin::default()
        };
        let same = arguments_for(&store_arguments(""), &origin).unwrap();
        assert_eq!(same.endpoint.unwrap().to_string(), "http://h:1");
        assert_eq!((same.region.as_deref(), same.path_style), (Some("r"), true));
        let other = arguments_for(&store_arguments("--endpoint http://h:2 --region q"), &origin).unwrap();
        assert_eq!(other.endpoint.unwrap().to_string(), "http://h:2");
        assert_eq!((other.region.as_deref(), other.provider), (Some("q"), None));
    }

    #[test]
    fn ages() {
        let ago = |seconds| age(SystemTime::now() - std::time::Duration::from_secs(seconds));
        assert_eq!([ago(60), ago(600), ago(7200), ago(1_000_000)], ["60 s ago", "10 min ago", "2 h ago", "11 d ago"]);
    }
}
