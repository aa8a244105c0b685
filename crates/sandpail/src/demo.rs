//! `sandpail demo`: everything on an embedded bucket, in a minute.
//!
//! It starts a server on an embedded bucket, mounts it over S3, and does what people do with a directory.
//! Each step is a real command, shown as it is run. Whatever happens, nothing is left behind.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use sandpail_spec::{Credentials, SecretKey};
use sandpail_store::http::{HttpStore, StaticCredentials};
use sandpail_store::{ListRequest, ObjectKey, Store, collect};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::DemoArgs;
use crate::host;
use crate::report;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The group of the command of a step, which an interrupt ends; 0 for none.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// The longest object of the demo that is looked at over S3, in bytes.
const SHOWN_LEN_MAX: u64 = 1 << 20;

/// Reads a CSV, computes, and writes the result beside it.
const PYTHON_STEP: &str = r#"
import csv, pathlib, statistics
rows = list(csv.DictReader(open("data/measurements.csv")))
by_city = {}
for row in rows:
    by_city.setdefault(row["city"], []).append(float(row["celsius"]))
out = pathlib.Path("results"); out.mkdir(exist_ok=True)
with open(out / "summary.csv", "w", newline="") as file:
    writer = csv.writer(file); writer.writerow(["city", "count", "mean"])
    for city, values in sorted(by_city.items()):
        writer.writerow([city, len(values), round(statistics.mean(values), 2)])
print(f"read {len(rows)} rows, wrote results/summary.csv for {len(by_city)} cities")
"#;

struct Done {
    what: &'static str,
    took: Duration,
    note: String,
}

/// Everything that must not outlive the demo.
struct Stage {
    dir: PathBuf,
    mountpoint: PathBuf,
    server: Option<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What an interrupted step wrote is not missed: nothing waits long for it.
        if host::sandpail_mount(&self.mountpoint).is_some()
            && unmount(&self.mountpoint, &["--force", "--timeout", "20s"]).is_err()
        {
            let _ = host::unmount(&self.mountpoint, true);
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

fn unmount(mountpoint: &Path, options: &[&str]) -> anyhow::Result<()> {
    finish(Command::new(program()?).arg("umount").args(options).arg(mountpoint)).map(drop)
}

/// In a group of its own: Ctrl-C reaches us alone, and we end in order.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

fn output_of(command: &Command, child: Child) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = child.wait_with_output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, interrupted or not; its output is the result.
fn finish(command: &mut Command) -> anyhow::Result<String> {
    let child = spawn(command).with_context(|| format!("cannot run {command:?}"))?;
    output_of(command, child)
}

/// Runs a command of a step, which an interrupt ends; its output is the result.
fn succeed(command: &mut Command) -> anyhow::Result<String> {
    check_interrupt()?;
    let child = spawn(command).with_context(|| format!("cannot run {command:?}"))?;
    RUNNING.store(i32::try_from(child.id()).unwrap_or(0), Ordering::SeqCst);
    if INTERRUPTED.load(Ordering::SeqCst) {
        end_running();
    }
    let output = output_of(command, child);
    RUNNING.store(0, Ordering::SeqCst);
    check_interrupt()?;
    output
}

fn check_interrupt() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

fn end_running() {
    if let Some(group) = Pid::from_raw(RUNNING.swap(0, Ordering::SeqCst)) {
        // It may have ended by itself just now.
        let _ = kill_process_group(group, Signal::TERM);
    }
}

/// Notes the first signal that asks us to end; whatever runs then is taken down in order.
async fn watch_signals() -> std::io::Result<()> {
    let mut signals =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let [int, term, hup] = &mut signals;
    loop {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
        if !INTERRUPTED.swap(true, Ordering::SeqCst) {
            eprintln!("\nending: unmounting and removing everything …");
        }
        end_running();
    }
}

struct Demo {
    stage: Stage,
    runtime: tokio::runtime::Runtime,
    environment: Vec<(String, String)>,
    done: Vec<Done>,
}

pub(crate) fn run(arguments: &DemoArgs) -> anyhow::Result<()> {
    if let Err(error) = host::check_fuse() {
        println!("This host cannot mount yet: {}", report::in_one_line(&error));
        println!("What works without: sandpail bucket create, bucket serve, bucket list, doctor.");
        bail!("the demo needs a mount");
    }
    let tree = match &arguments.tree {
        Some(tree) => tree.canonicalize().with_context(|| format!("no directory {}", tree.display()))?,
        None => std::env::current_dir()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(async {
        if let Err(error) = watch_signals().await {
            eprintln!("sandpail: signals are not heard: {error}");
        }
    });
    let dir = tempfile::Builder::new().prefix("sandpail-demo-").tempdir()?.keep();
    let mountpoint = dir.join("data");
    let stage = Stage { dir, mountpoint, server: None };
    let mut demo = Demo { stage, runtime, environment: Vec::new(), done: Vec::new() };
    demo.play(&tree)
}

impl Demo {
    fn play(&mut self, tree: &Path) -> anyhow::Result<()> {
        let mnt = self.stage.mountpoint.clone();
        std::fs::create_dir(&mnt)?;
        self.step("start an embedded bucket, served as S3", Self::serve)?;
        self.step("mount it", |demo| demo.mount(false))?;
        self.step("unpack a source tree (tar)", |demo| demo.unpack(tree))?;
        self.step("a Python script: CSV in, CSV out", |demo| demo.python())?;
        self.step("git init, add, commit in the mount", |demo| demo.git())?;
        self.step("ls -lR over everything", |demo| demo.list())?;
        self.step("append 20 lines to a log", |demo| demo.append())?;
        self.step("rename a directory", |demo| demo.rename())?;
        self.step("write and read back 64 MiB", |demo| demo.large())?;
        self.step("look at the bucket as a plain S3 client", |demo| demo.plain_s3())?;
        let sums = self.sums()?;
        self.step("unmount, mount again read-only", |demo| {
            unmount(&demo.stage.mountpoint, &[])?;
            demo.mount(true)
        })?;
        self.step("verify all checksums", |demo| {
            let now = demo.sums()?;
            anyhow::ensure!(now == sums, "files differ after the second mount");
            Ok(format!("{} files, all the same", now.lines().count()))
        })?;
        self.step("try to write", |demo| demo.refused_write())?;
        unmount(&mnt, &[])?;
        self.table();
        Ok(())
    }

    fn step(
        &mut self,
        what: &'static str,
        work: impl FnOnce(&mut Self) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        print!("{:>2}. {what} … ", self.done.len() + 1);
        std::io::stdout().flush()?;
        check_interrupt()?;
        let started = Instant::now();
        let note = work(self).with_context(|| format!("step \"{what}\" failed"))?;
        let took = started.elapsed();
        println!("{note}");
        self.done.push(Done { what, took, note });
        Ok(())
    }

    fn serve(&mut self) -> anyhow::Result<String> {
        let bucket = self.stage.dir.join("demo-bucket");
        let mut command = Command::new(program()?);
        command.args(["bucket", "serve"]).arg(&bucket).args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let server = self.stage.server.insert(command.spawn()?);
        let output = server.stdout.take().context("no pipe")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some((name, value)) = line.strip_prefix("export ").and_then(|rest| rest.split_once('=')) {
                self.environment.push((name.to_owned(), value.to_owned()));
            } else if line.starts_with("# then") {
                break;
            }
        }
        let endpoint = self.environment.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL_S3");
        Ok(format!("listening at {}", endpoint.context("the server did not start")?.1))
    }

    fn mount(&mut self, read_only: bool) -> anyhow::Result<String> {
        let mut command = Command::new(program()?);
        command.args(["mount", "demo-bucket"]).arg(&self.stage.mountpoint).envs(self.environment.clone());
        command.arg("--staging-dir").arg(self.stage.dir.join("staging"));
        if read_only {
            command.arg("--read-only");
        }
        // Not cut short: a mount that is half made is harder to take down than a whole one.
        finish(&mut command)?;
        let line = host::sandpail_mount(&self.stage.mountpoint).context("it is not in the mount table")?;
        Ok(format!("{} is a {} mount of {}", line.mountpoint.display(), line.fs_type, line.source))
    }

    fn shell(&self, script: &str) -> anyhow::Result<String> {
        succeed(Command::new("sh").args(["-euc", script]).current_dir(&self.stage.mountpoint))
    }

    fn unpack(&self, tree: &Path) -> anyhow::Result<String> {
        // What git tracks, if this is a repository; else everything but build output.
        let script = "mkdir tree; cd \"$TREE\"; \
            if git rev-parse --git-dir >/dev/null 2>&1; then git ls-files -z --cached; \
            else find . -type f -not -path './target/*' -print0 | head -zn 2000; fi \
            | tar --null --ignore-failed-read -T - -cf \"$ARCHIVE\" 2>/dev/null; cd - >/dev/null; \
            tar -xf \"$ARCHIVE\" -C tree; find tree -type f | wc -l";
        let mut command = Command::new("sh");
        command.args(["-euc", script]).env("TREE", tree).env("ARCHIVE", self.stage.dir.join("tree.tar"));
        let count = succeed(command.current_dir(&self.stage.mountpoint))?;
        anyhow::ensure!(count.trim().parse::<u32>().is_ok_and(|count| count > 0), "no files in {}", tree.display());
        Ok(format!("{} files", count.trim()))
    }

    fn python(&self) -> anyhow::Result<String> {
        let data = self.stage.mountpoint.join("data");
        std::fs::create_dir(&data)?;
        let mut csv = String::from("city,celsius\n");
        for row in 0..5000u32 {
            let city = ["Oslo", "Lima", "Cairo", "Perth"][(row % 4) as usize];
            csv.push_str(&format!("{city},{}\n", f64::from(row * 37 % 400) / 10.0));
        }
        std::fs::write(data.join("measurements.csv"), csv)?;
        let output = succeed(Command::new("python3").args(["-c", PYTHON_STEP]).current_dir(&self.stage.mountpoint))?;
        Ok(output.trim().to_owned())
    }

    fn git(&self) -> anyhow::Result<String> {
        let output = self.shell(
            "mkdir project; cd project; git init -q; cp ../results/summary.csv .; echo '# demo' > README.md; \
             git add -A; git -c user.name=demo -c user.email=demo@example.com commit -qm 'first'; git log --oneline; \
             git fsck --no-progress",
        )?;
        Ok(format!("commit {}", output.lines().next().unwrap_or_default()))
    }

    fn list(&self) -> anyhow::Result<String> {
        let lines = self.shell("ls -lR")?.lines().count();
        Ok(format!("{lines} lines"))
    }

    fn append(&self) -> anyhow::Result<String> {
        let count = self.shell("for i in $(seq 20); do echo \"line $i\" >> app.log; done; wc -l < app.log")?;
        Ok(format!("app.log has {} lines", count.trim()))
    }

    fn rename(&self) -> anyhow::Result<String> {
        let count = self.shell("mv tree source; find source -type f | wc -l; ! test -e tree")?;
        Ok(format!("tree/ is source/ now, with {} files", count.trim()))
    }

    fn large(&self) -> anyhow::Result<String> {
        let started = Instant::now();
        self.shell("head -c 67108864 /dev/urandom > large.bin")?;
        let wrote = started.elapsed();
        let started = Instant::now();
        self.shell("cat large.bin > /dev/null")?;
        let rate = |took: Duration| 64.0 / took.as_secs_f64();
        Ok(format!("write {:.0} MiB/s to the bucket, read {:.0} MiB/s", rate(wrote), rate(started.elapsed())))
    }

    /// What another program sees of the bucket: requests to its S3 endpoint, past the mount.
    fn plain_s3(&self) -> anyhow::Result<String> {
        let variable = |wanted: &str| {
            let found = self.environment.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone()).with_context(|| format!("the server did not say {wanted}"))
        };
        let keys = Credentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: SecretKey::new(variable("AWS_SECRET_ACCESS_KEY")?),
            session_token: None,
        };
        let store = HttpStore::builder(variable("AWS_ENDPOINT_URL_S3")?.parse()?, "demo-bucket")
            .region(variable("AWS_REGION")?)
            .path_style(true)
            .credentials(Arc::new(StaticCredentials::new(keys)))
            .build()?;
        self.runtime.block_on(async {
            let mut request = ListRequest::default();
            let (mut count, mut shown) = (0, String::new());
            loop {
                let page = store.list(&request).await?;
                count += page.objects.len();
                for object in page.objects {
                    if object.key.as_str().starts_with("results/") || object.key.as_str() == "app.log" {
                        shown.push_str(&format!("\n{:>12}  {}", object.size, object.key));
                    }
                }
                match page.next {
                    Some(next) => request.continuation = Some(next),
                    None => break,
                }
            }
            let key = ObjectKey::new("results/summary.csv")?;
            let size = store.head(&key).await?.size;
            let body =
                collect(store.get(&key, 0..size, None).await?, usize::try_from(size.min(SHOWN_LEN_MAX))?).await?;
            let text = String::from_utf8_lossy(&body);
            let lines: Vec<&str> = text.lines().take(2).collect();
            Ok(format!("{count} objects, among them:{shown}\n    {key} by GET over S3: {} …", lines.join(" | ")))
        })
    }

    fn sums(&self) -> anyhow::Result<String> {
        self.shell("find . -type f -not -path './project/.git/*' -print0 | sort -z | xargs -0 sha256sum")
    }

    fn refused_write(&self) -> anyhow::Result<String> {
        match std::fs::write(self.stage.mountpoint.join("no.txt"), "x") {
            Ok(()) => bail!("a write to a read-only mount was taken"),
            Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                Ok("refused: Read-only file system".to_owned())
            }
            Err(error) => Err(error).context("refused in another way than expected"),
        }
    }

    fn table(&self) {
        println!("\n{:<44} {:>9}", "step", "seconds");
        for done in &self.done {
            println!("{:<44} {:>9.2}", done.what, done.took.as_secs_f64());
        }
        let rates = self.done.iter().find(|done| done.note.contains("MiB/s"));
        println!("\n{}", rates.map_or("", |done| done.note.as_str()));
        println!("Nothing is left: the mount, the server and the bucket are gone.\n");
        println!("Next:");
        println!("  sandpail bucket serve ./my-bucket                     a bucket of your own, and its keys");
        println!("  sandpail mount dir:./my-bucket DIR                    the same without a server");
        println!("  sandpail mount BUCKET DIR --endpoint https://…        any S3-compatible store");
        println!("  sandpail doctor                                       what this host can do");
    }
}
