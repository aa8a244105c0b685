//! What cannot work is refused in one clear line, with nothing half done.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sandpail_e2e::mount::is_mounted;
use sandpail_e2e::{Fault, Finished, Proxy, ServerKind, Test, World, on_peer};

const EMBEDDED: &[ServerKind] = &[ServerKind::Embedded];

pub(crate) const TESTS: &[Test] = &[
    Test::new("bad_input::mounts_that_cannot_work", mounts_that_cannot_work),
    Test::new("bad_input::not_s3", not_s3).on(EMBEDDED),
    Test::new("bad_input::mountpoints", mountpoints).on(EMBEDDED),
    Test::new("bad_input::list_denied_get_allowed", list_denied).on(&[ServerKind::SeaweedFs]),
    Test::new("bad_input::umount_of_what_is_not_mounted", umount).on(EMBEDDED),
    Test::new("bad_input::umount_of_a_busy_mount", busy).on(EMBEDDED),
    Test::new("bad_input::daemonised_mounts", daemonised),
    Test::new("bad_input::fstab_forms", fstab_forms).on(EMBEDDED),
    Test::new("bad_input::subcommands", subcommands).on(EMBEDDED),
];

/// Runs `sandpail …`, which must fail with one clear line that contains each of `words`, and leave nothing.
fn refused(world: &World, command: &str, words: &[&str]) -> Result<()> {
    let script = world.script_in(&world.local(), &format!("mkdir -p mnt; {command}"))?;
    let finished = script.env("HOME", world.local()).limit(std::time::Duration::from_secs(90)).finish()?;
    let told = || format!("`{command}`\n{}", finished.told());
    ensure!(finished.code != 0 && finished.code != 124, "not refused: {}", told());
    ensure!(is_one_clear_line(&finished), "not one clear line: {}", told());
    for word in words {
        ensure!(finished.stderr.to_lowercase().contains(&word.to_lowercase()), "does not name {word:?}: {}", told());
    }
    ensure!(!is_mounted(&world.local().join("mnt")), "a half mount is left: {}", told());
    no_process_mentions(&world.local()).with_context(told)
}

fn is_one_clear_line(finished: &Finished) -> bool {
    let lines: Vec<_> = finished.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    // The argument parser adds its usage.
    let about_usage = |line: &&&str| {
        let own = line.trim_start();
        !line.starts_with("Usage") && !line.starts_with("For more") && !own.starts_with("tip:") && !own.starts_with('<')
    };
    let own = lines.iter().filter(about_usage).count();
    own == 1 && !finished.stderr.contains("panicked") && !finished.stderr.contains("RUST_BACKTRACE")
}

fn no_process_mentions(path: &Path) -> Result<()> {
    let path = path.display().to_string();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        ensure!(
            !command.contains("sandpail") || !command.contains("mount") || !command.contains(&path),
            "a process is left: {command}"
        );
    }
    Ok(())
}

fn mounts_that_cannot_work(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = "\"$SANDPAIL\" mount --endpoint \"$ENDPOINT\" --region us-east-1";
    refused(world, &format!("{mount} no-such-bucket mnt"), &["no-such-bucket"])?;
    refused(world, &format!("AWS_ACCESS_KEY_ID=wrong {mount} \"$BUCKET\" mnt"), &["key"])?;
    refused(world, &format!("AWS_SECRET_ACCESS_KEY=wrong {mount} \"$BUCKET\" mnt"), &["key"])?;
    refused(
        world,
        &format!(
            "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; AWS_EC2_METADATA_DISABLED=true {mount} \"$BUCKET\" mnt"
        ),
        &["AWS_ACCESS_KEY_ID"],
    )?;
    refused(world, "\"$SANDPAIL\" mount --endpoint http://127.0.0.1:1 \"$BUCKET\" mnt", &["127.0.0.1:1"])?;
    refused(
        world,
        "\"$SANDPAIL\" mount --endpoint http://no-such-host.invalid \"$BUCKET\" mnt",
        &["no-such-host.invalid"],
    )?;
    refused(world, "\"$SANDPAIL\" mount --endpoint https://${ENDPOINT#http://} \"$BUCKET\" mnt", &["https"])?;
    refused(world, "\"$SANDPAIL\" mount --endpoint nonsense \"$BUCKET\" mnt", &["nonsense"])?;
    refused(world, &format!("{mount} --prefix data \"$BUCKET\" mnt"), &["prefix", "data", "/"])?;
    refused(world, &format!("{mount} \"$BUCKET\" no/such/directory"), &["no/such/directory"])?;
    refused(world, &format!(": >file; {mount} \"$BUCKET\" file"), &["file", "directory"])?;
    refused(world, &format!("{mount} --no-such-option \"$BUCKET\" mnt"), &["--no-such-option"])?;
    refused(world, &format!("{mount} --cache-size 10XB \"$BUCKET\" mnt"), &["10XB"])?;
    refused(world, &format!("{mount} --cache-size -1 \"$BUCKET\" mnt"), &["-1"])?;
    refused(world, &format!("{mount} --metadata-ttl soon \"$BUCKET\" mnt"), &["soon"])?;
    refused(world, &format!("{mount} --part-size 1KiB \"$BUCKET\" mnt"), &["part"])?;
    refused(world, &format!("{mount} --file-mode 999 \"$BUCKET\" mnt"), &["999"])?;
    refused(world, &format!("{mount} --provider s4 \"$BUCKET\" mnt"), &["s4"])?;
    refused(world, &format!("{mount} UPPER_case mnt"), &["UPPER_case"])?;
    refused(world, &format!("{mount} '' mnt"), &["bucket"])?;
    refused(world, &format!("{mount} \"$BUCKET\""), &["MOUNTPOINT"])?;
    refused(world, "\"$SANDPAIL\" mount dir:/no/such/bucket mnt", &["/no/such/bucket"])?;
    refused(world, "mkdir -p plain; \"$SANDPAIL\" mount dir:plain mnt", &["plain", "bucket create"])
}

/// Servers that speak something else, or nothing at all.
fn not_s3(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>hello</html>\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        std::thread::spawn(move || {
            for stream in listener.incoming().take(50).flatten() {
                let mut stream = stream;
                let mut request = [0; 4096];
                let _ = std::io::Read::read(&mut stream, &mut request);
                let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
            }
        });
        refused(world, &format!("\"$SANDPAIL\" mount --endpoint http://{addr} \"$BUCKET\" mnt"), &[&addr.to_string()])
            .with_context(|| format!("a server that answers {answer:?}"))?;
    }
    Ok(())
}

fn mountpoints(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(&mount, "echo x >kept")?;
    // A second mount on the same directory says no and harms nothing.
    refused(world, "\"$SANDPAIL\" mount --endpoint \"$ENDPOINT\" \"$BUCKET\" ../mnt", &["mnt", "already"]).or_else(
        |error| {
            // `refused` looks for processes by the test's directory, which the live mount names.
            if error.to_string().contains("a process is left") { Ok(()) } else { Err(error) }
        },
    )?;
    world.sh(&mount, "[ \"$(cat kept)\" = x ]; echo y >kept; [ \"$(cat kept)\" = y ]")?;
    mount.unmount()?;
    // A directory with files in it may be mounted over.
    world.script_in(world.directory(), "mkdir -p mnt; echo below >mnt/below")?.run()?;
    let mount = world.mount(&[])?;
    world.sh(&mount, "[ ! -e below ]; [ \"$(cat kept)\" = y ]")?;
    mount.unmount()?;
    world.script_in(world.directory(), "[ \"$(cat mnt/below)\" = below ]; [ ! -e mnt/kept ]; rm mnt/below")?.run()?;
    Ok(())
}

/// Keys that may read but not list: a directory whose names nobody may see is none, and what the keys lack is named.
fn list_denied(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world.python("put('known', b'x')")?;
    let proxy = Proxy::start(world.server.addr())?;
    proxy.break_next("list-type", Fault::AccessDenied, 1_000_000);
    let mount = format!("\"$SANDPAIL\" mount --endpoint {} --region us-east-1 \"$BUCKET\" mnt", proxy.endpoint());
    refused(world, &mount, &["list", "denied", "permission"])?;
    Ok(())
}

fn umount(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    refused(world, "\"$SANDPAIL\" umount mnt", &["mnt", "mounted"])?;
    refused(world, "\"$SANDPAIL\" umount no/such", &["no/such"])
}

/// Who uses the mount is named, and it goes on working.
fn busy(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world
        .script_in(
            &world.local(),
            r#"
            mkdir mnt; trap '"$SANDPAIL" umount mnt 2>/dev/null || true' EXIT
            "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt
            exec 7>mnt/a; echo one >&7
            fails "$SANDPAIL" umount mnt 2>err; [ "$(wc -l <err)" = 1 ] || { cat err >&2; exit 1; }
            grep -q "mnt is in use by .*($$)" err || { cat err >&2; exit 1; }
            mountpoint -q mnt; echo two >&7; [ "$(cat mnt/a)" = "$(printf 'one\ntwo')" ]
            "$SANDPAIL" list | grep -F "$PWD/mnt" >/dev/null; exec 7>&-; "$SANDPAIL" umount mnt; fails mountpoint -q mnt
            "#,
        )?
        .run()?;
    world.python(r"assert get('a') == b'one\ntwo\n', get('a')")?;
    Ok(())
}

/// Without `--foreground` the program returns when the mount answers, and leaves one process until `umount`.
fn daemonised(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let out = world
        .script_in(
            &world.local(),
            r#"
            mkdir -p "m nt"; trap '"$SANDPAIL" umount "m nt" 2>/dev/null || true' EXIT
            "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" "m nt" </dev/null | cat
            echo x >"m nt/a"; "$SANDPAIL" list | grep -F "$PWD/m nt" >/dev/null; pid=$("$SANDPAIL" list | grep -F "$PWD/m nt" | sed 's/.*pid //'); [ -d /proc/$pid ]
            tr '\0' '\n' </proc/$pid/environ >env; tr '\0' ' ' </proc/$pid/cmdline >cmd
            fails grep -q "$AWS_SECRET_ACCESS_KEY" cmd env
            "$SANDPAIL" umount "m nt"; [ -z "$(ls -A "m nt")" ]; for n in $(seq 100); do [ -d /proc/$pid ] || break; sleep 0.1; done; [ ! -d /proc/$pid ]
            trap - EXIT; [ ! -e "/run/sandpail/mount-$pid.json" ]; [ ! -e "/run/sandpail/mount-$pid.sock" ]; [ ! -e "/run/sandpail/mount-$pid.log" ] || echo "log left"
            "#,
        )?
        .run()?;
    ensure!(!out.contains("log left"), "a log is left after a clean unmount");
    Ok(())
}

fn fstab_forms(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world
        .script_in(
            &world.local(),
            r#"
            mkdir -p mnt; trap '"$SANDPAIL" umount mnt 2>/dev/null || true' EXIT
            "$SANDPAIL" "$BUCKET" mnt -o "rw,_netdev,noatime,endpoint=$ENDPOINT,region=us-east-1"; echo x >mnt/a; "$SANDPAIL" umount mnt
            ln -s "$SANDPAIL" mount.fuse.sandpail
            ./mount.fuse.sandpail "$BUCKET" mnt -o "ro,_netdev,endpoint=$ENDPOINT,region=us-east-1"; [ "$(cat mnt/a)" = x ]
            fails bash -c 'echo y >mnt/a' 2>err; grep -q 'Read-only file system' err; "$SANDPAIL" umount mnt
            trap - EXIT; fails "$SANDPAIL" "$BUCKET" mnt -o "rw,no_such_thing,endpoint=$ENDPOINT" 2>err; grep -q no.such.thing err
            "#,
        )?
        .run()?;
    Ok(())
}

fn subcommands(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    refused(world, "\"$SANDPAIL\" moutn", &["moutn"])?;
    refused(world, "\"$SANDPAIL\" bucket serve dir --listen nowhere", &["nowhere"])?;
    refused(world, "\"$SANDPAIL\" bucket serve dir --listen ${ENDPOINT#http://}", &["use"])?;
    refused(world, "\"$SANDPAIL\" bucket list no/such", &["no/such"])?;
    world
        .script_in(
            &world.local(),
            r#"
            "$SANDPAIL" --help >h; "$SANDPAIL" mount --help >h2; grep -q Examples h2; "$SANDPAIL" --version >v; grep -q '^sandpail [0-9]' v
            "$SANDPAIL" completions bash >c; grep -q -- --cache-size c; bash -n c
            for shell in zsh fish elvish powershell; do "$SANDPAIL" completions $shell >c; grep -q cache-size c; done
            "#,
        )?
        .run()?;
    Ok(())
}
