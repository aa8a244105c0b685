//! Attaching and detaching, with a tmpfs in the place of a bucket.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use sandpail_sandbox::{ExecSpec, Sandbox, SandboxError, SandboxSpec};

use crate::world::{World, runtime, shell, words};

crate::tests![
    a_mount_comes_and_goes,
    a_mount_covers_what_was_there,
    a_busy_mount_stays_and_names_its_users,
    links_are_followed_inside_only,
    links_to_system_places_are_refused,
    what_was_attached_is_detached_wherever_its_path_leads,
    a_later_daemon_detaches,
    a_failed_attach_leaves_nothing,
    directories_open_for_the_host,
];

/// A detached mount whose files everybody may write.
pub(crate) fn tmpfs() -> OwnedFd {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "777").unwrap();
    rustix::mount::fsconfig_create(context.as_fd()).unwrap();
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

async fn check(sandbox: &Sandbox, line: &str, expected: &str) {
    let done = shell(sandbox, line).await;
    assert_eq!((done.stdout.trim(), done.code), (expected, 0), "{line}: {done:?}");
}

async fn a_mount_comes_and_goes() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let before = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for _ in 0..3 {
        let made = sandbox.attach(tmpfs(), Path::new("/data/a b/c")).await.unwrap();
        assert_eq!(made.as_deref(), Some(Path::new("/data")));
        check(&sandbox, "echo hello >'/data/a b/c/f' && cat '/data/a b/c/f'", "hello").await;
        check(&sandbox, "grep -c 'a.040b/c tmpfs rw,nosuid,nodev' /proc/mounts", "1").await;
        assert_eq!(std::fs::read_to_string("/proc/self/mounts").unwrap(), before, "the host sees nothing");
        sandbox.detach(Path::new("/data/a b/c"), made.as_deref(), false).await.unwrap();
        check(&sandbox, "ls -d /data 2>/dev/null || echo gone", "gone").await;
    }
    let error = sandbox.detach(Path::new("/tmp"), None, false).await.unwrap_err();
    assert!(error.to_string().contains("nothing is mounted"), "{error}");
    sandbox.destroy().await.unwrap();
}

async fn a_mount_covers_what_was_there() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    check(&sandbox, "mkdir -m 750 /workspace/d && echo old >/workspace/d/old && chown 5:6 /workspace/d", "").await;
    // A process whose working directory is below the mount to come cannot write there while it is mounted.
    let spec = ExecSpec {
        argv: words(&[
            "bash",
            "-c",
            "cd d; echo in; while [ ! -e /workspace/go ]; do sleep 0.01; done; touch x && echo wrote",
        ]),
        ..ExecSpec::default()
    };
    let mut below = sandbox.exec(spec).await.unwrap();
    below.recv().await.unwrap();
    let path = Path::new("/workspace/d");
    assert_eq!(sandbox.attach(tmpfs(), path).await.unwrap(), None);
    check(&sandbox, "ls /workspace/d", "").await;
    check(&sandbox, "touch /workspace/d/new /workspace/go && ls /workspace/d", "new").await;
    let done = crate::world::collect(below).await.unwrap();
    assert!(done.stderr.contains("Permission denied") && done.stdout.is_empty(), "{done:?}");
    sandbox.detach(path, None, false).await.unwrap();
    check(&sandbox, "ls /workspace/d; stat -c '%a %u %g' /workspace/d", "old\n750 5 6").await;
    sandbox.destroy().await.unwrap();
}

async fn a_busy_mount_stays_and_names_its_users() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let path = Path::new("/data");
    for (what, line) in
        [("cwd", "cd /data; echo in; exec sleep 100"), ("descriptor", "exec 5>/data/f; echo in; exec sleep 100")]
    {
        let made = sandbox.attach(tmpfs(), path).await.unwrap();
        let spec = ExecSpec { argv: words(&["bash", "-c", line]), ..ExecSpec::default() };
        let mut events = sandbox.exec(spec).await.unwrap();
        events.recv().await.unwrap();
        let SandboxError::Busy { users, .. } = sandbox.detach(path, made.as_deref(), false).await.unwrap_err() else {
            panic!("{what}: another error");
        };
        assert!(
            users.len() == 1 && users[0].starts_with(['s', 'b']) && users[0].contains("(pid "),
            "{what}: {users:?}"
        );
        check(&sandbox, "touch /data/still && ls /data | grep -c still", "1").await;
        sandbox.detach(path, made.as_deref(), true).await.unwrap();
        check(&sandbox, "ls -d /data 2>/dev/null || echo gone", "gone").await;
        shell(&sandbox, "pkill sleep; true").await;
    }
    sandbox.destroy().await.unwrap();
}

async fn links_are_followed_inside_only() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let secret = tempfile::tempdir().unwrap();
    let outside = secret.path().to_str().unwrap();
    check(&sandbox, &format!("ln -s ../../../../../../{outside} link; mkdir t; ln -s /workspace/t in"), "").await;
    let path = Path::new("/workspace/in/m");
    let made = sandbox.attach(tmpfs(), path).await.unwrap();
    check(&sandbox, "grep -c ' /workspace/t/m ' /proc/mounts", "1").await;
    sandbox.detach(path, made.as_deref(), false).await.unwrap();
    check(&sandbox, "ls -A t", "").await;
    // The link leads nowhere inside, and is not followed outside.
    let attached = sandbox.attach(tmpfs(), Path::new("/workspace/link/m")).await;
    assert!(attached.is_err(), "{attached:?}");
    assert_eq!(secret.path().read_dir().unwrap().count(), 0);
    // What the kernel shows is never covered, nor written to, whatever leads there; nor is the root.
    for target in ["/proc", "/proc/sys", "/proc/1", "/sys", "/sys/fs", "/dev", "/dev/shm", "/", "..//../proc/self/.."] {
        check(&sandbox, &format!("ln -sfn {target} kernel"), "").await;
        for path in ["/workspace/kernel", "/workspace/kernel/."] {
            let attached = sandbox.attach(tmpfs(), Path::new(path)).await;
            assert!(attached.is_err(), "{target}: {attached:?}");
            assert!(sandbox.open_directory(Path::new(path)).await.is_err(), "{target}");
        }
    }
    check(&sandbox, "ln -sfn /dev kernel; ls /dev | grep '^new$' || echo none", "none").await;
    assert!(sandbox.attach(tmpfs(), Path::new("/workspace/kernel/new/er")).await.is_err());
    check(&sandbox, "ls /dev | grep -c '^new$'; grep -c ' /dev/new' /proc/mounts || true", "0\n0").await;
    sandbox.destroy().await.unwrap();
}

async fn links_to_system_places_are_refused() {
    let world = World::new();
    let tool = world.directory.path().join("tool");
    std::fs::create_dir_all(tool.join("below")).unwrap();
    let sandbox = world.create(SandboxSpec { expose: vec![tool.clone()], ..SandboxSpec::default() }).await;
    let table = shell(&sandbox, "cat /proc/self/mountinfo").await.stdout;
    let link = Path::new("/workspace/l");
    let tool = tool.to_str().unwrap();
    let below = format!("{tool}/below");
    for target in [
        "/",
        "/proc",
        "/proc/1",
        "/proc/sys",
        "/proc/acpi",
        "/sys",
        "/sys/devices/system/cpu",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/run/sandpail",
        "/run/sandpail/sessions",
        tool,
        &below,
    ] {
        check(&sandbox, &format!("test -d {target} && ln -sfn {target} /workspace/l"), "").await;
        let through = sandbox.attach(tmpfs(), link).await.unwrap_err();
        assert!(through.to_string().contains("it leads to"), "{target}: {through}");
        sandbox.attach(tmpfs(), Path::new(target)).await.unwrap_err();
        sandbox.open_directory(link).await.unwrap_err();
        let new = Path::new("/workspace/l/new");
        let attached = sandbox.attach(tmpfs(), new).await;
        // Below the root directory is the guest's own.
        assert_eq!(attached.is_ok(), target == "/", "{target}: {attached:?}");
        if let Ok(made) = attached {
            sandbox.detach(new, made.as_deref(), false).await.unwrap();
        }
        check(&sandbox, &format!("ls -d {target}/new 2>/dev/null || echo none"), "none").await;
        assert_eq!(shell(&sandbox, "cat /proc/self/mountinfo").await.stdout, table, "{target}");
    }
    sandbox.destroy().await.unwrap();
}

async fn what_was_attached_is_detached_wherever_its_path_leads() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let (link, data) = (Path::new("/workspace/l"), Path::new("/data"));
    sandbox.attach(tmpfs(), data).await.unwrap();
    check(&sandbox, "mkdir /workspace/real /data/sub; touch /data/sub/file", "").await;
    let table = shell(&sandbox, "cat /proc/self/mountinfo").await.stdout;
    for target in ["/proc/sys", "/proc/acpi", "/dev/shm", "/etc/hosts", "/data", "/data/sub", "/", "nowhere", "l"] {
        for is_forced in [false, true] {
            check(&sandbox, "ln -sfn real /workspace/l", "").await;
            sandbox.attach(tmpfs(), link).await.unwrap();
            check(&sandbox, "grep -c ' /workspace/real ' /proc/mounts", "1").await;
            check(&sandbox, &format!("rm /workspace/l; ln -sfn {target} /workspace/l"), "").await;
            // Even what is above may have another name by now.
            check(&sandbox, "mkdir -p /workspace/up && touch /workspace/real/f", "").await;
            sandbox.detach(link, None, is_forced).await.unwrap();
            assert_eq!(shell(&sandbox, "cat /proc/self/mountinfo").await.stdout, table, "{target}");
            check(&sandbox, "ls -A /workspace/real; stat -c %a /workspace/real", "755").await;
            let again = sandbox.detach(link, None, is_forced).await.unwrap_err();
            assert!(again.to_string().contains("nothing is mounted"), "{target}: {again}");
        }
    }
    // Where nothing was attached, nothing is detached: not what is mounted above either.
    for path in ["/data/sub", "/data/", "/dev/shm", "/proc/sys", "/run", "/workspace/up"] {
        let path = Path::new(path);
        if path != data {
            sandbox.detach(path, None, true).await.unwrap_err();
        }
    }
    check(&sandbox, "ls /data/sub", "file").await;
    // A directory above that was renamed is no way out.
    check(&sandbox, "mkdir -p /workspace/a/b && ln -sfn a/b /workspace/l", "").await;
    sandbox.attach(tmpfs(), link).await.unwrap();
    check(&sandbox, "mv /workspace/a /workspace/c && mkdir -p /workspace/a/b", "").await;
    sandbox.detach(link, None, false).await.unwrap();
    assert_eq!(shell(&sandbox, "cat /proc/self/mountinfo").await.stdout, table);
    check(&sandbox, "stat -c %a /workspace/c/b", "755").await;
    sandbox.destroy().await.unwrap();
}

async fn a_later_daemon_detaches() {
    let mut world = World::new();
    let sandbox = world.sandbox().await;
    check(&sandbox, "mkdir real; ln -s real l", "").await;
    let path = Path::new("/workspace/l");
    sandbox.attach(tmpfs(), path).await.unwrap();
    check(&sandbox, "ln -sfn /proc/sys /workspace/l", "").await;
    drop(sandbox);
    world.runtime = runtime(world.directory.path());
    let [sandbox]: [Sandbox; 1] = world.runtime.recover().await.unwrap().living.try_into().unwrap();
    sandbox.detach(path, None, false).await.unwrap();
    check(&sandbox, "grep -c ' /workspace/real ' /proc/mounts || grep -c ' /proc/sys ' /proc/mounts", "0\n1").await;
    sandbox.detach(path, None, true).await.unwrap_err();
    sandbox.destroy().await.unwrap();
}

async fn a_failed_attach_leaves_nothing() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let no_mount: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    sandbox.attach(no_mount, Path::new("/data/x")).await.unwrap_err();
    sandbox.attach(tmpfs(), Path::new("/etc/passwd/x")).await.unwrap_err();
    check(&sandbox, "ls -d /data 2>/dev/null || echo gone", "gone").await;
    sandbox.destroy().await.unwrap();
}

async fn directories_open_for_the_host() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let directory = sandbox.open_directory(Path::new("/workspace/sync/dir")).await.unwrap();
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(&directory, "from-host", flags, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    check(&sandbox, "ls /workspace/sync/dir; stat -c %U /workspace/sync/dir", "from-host\nroot").await;
    drop(directory);
    sandbox.destroy().await.unwrap();
}
