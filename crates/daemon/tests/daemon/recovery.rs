//! A daemon that is killed, and the next one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use sandpail_daemon::{Daemon, DaemonError, MountOptions};

use crate::world::{World, config, exec, id, request, workers_of};

crate::tests![
    a_killed_daemon_is_followed_by_one_that_finds_everything,
    a_second_daemon_stays_out,
    a_stopped_daemon_leaves_all
];

/// First argument of the process that is killed.
pub(crate) const VICTIM: &str = "victim-daemon";

/// A daemon with two sandboxes and three mounts, that waits for its end.
pub(crate) fn victim(state_dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let daemon = Daemon::start(config(state_dir)).await.unwrap();
        for (name, path) in [("alive", "/data"), ("alive", "/dies"), ("dies", "/data")] {
            daemon.mount(&id(name), request("MY_BUCKET", path, MountOptions::default())).await.unwrap();
        }
        let options = MountOptions { local_bucket: true, ..MountOptions::default() };
        daemon.mount(&id("alive"), request("OTHER", "/local", options)).await.unwrap();
        println!("{}", daemon.sandbox(&id("dies")).await.unwrap().pid());
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

fn start_victim(state_dir: &Path) -> (Child, i32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg(VICTIM).arg(state_dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().expect("the daemon's word"))
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn a_killed_daemon_is_followed_by_one_that_finds_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (mut victim, pid_of_dying) = start_victim(directory.path());
    let workers = workers_of(directory.path());
    assert_eq!(workers.len(), 3);
    victim.kill().unwrap();
    victim.wait().unwrap();
    // While nobody watches, a sandbox dies, and the process behind one of the living one's mounts.
    kill(pid_of_dying);
    let behind = |pid: &&i32| {
        let entry = std::fs::read_to_string(format!("/run/sandpail/mount-{pid}.json")).unwrap_or_default();
        entry.contains("/dies") && entry.contains("\"alive\"")
    };
    kill(*workers.iter().find(behind).expect("the worker of /dies"));

    let daemon = Daemon::start(config(directory.path())).await.unwrap();
    let alive = id("alive");
    let sandboxes = daemon.list_sandboxes().await;
    assert_eq!(sandboxes.iter().map(|info| (info.id.as_str(), info.running)).collect::<Vec<_>>(), [("alive", true)]);
    let mounts = daemon.list_mounts(&alive).await;
    let shown: Vec<_> = mounts.iter().map(|mount| (mount.mount_path.as_str(), mount.state)).collect();
    assert_eq!(shown, [("/data", "serving"), ("/dies", "failed"), ("/local", "serving")]);
    // The living mount works, the dead one refuses, and everything can be taken away.
    assert_eq!(exec(&daemon, &alive, "echo on > /data/on && cat /data/on").await.stdout, "on\n");
    assert_ne!(exec(&daemon, &alive, "echo lost > /dies/lost").await.code, 0);
    // What an earlier daemon has started survives under this one, too.
    let behind = |pid: &&i32| {
        let entry = std::fs::read_to_string(format!("/run/sandpail/mount-{pid}.json")).unwrap_or_default();
        entry.contains("/data") && entry.contains("\"alive\"")
    };
    kill(*workers_of(directory.path()).iter().find(behind).expect("the worker of /data"));
    assert_eq!(
        exec(&daemon, &alive, "cat /data/on; echo more >> /data/on; cat /data/on").await.stdout,
        "on\non\nmore\n"
    );
    for path in ["/data", "/dies", "/local"] {
        daemon.unmount(&alive, path, false).await.unwrap();
    }
    assert_eq!(exec(&daemon, &alive, "ls -d /data /dies 2>/dev/null").await.stdout, "");
    daemon.mount(&alive, request("MY_BUCKET", "/data", MountOptions::default())).await.unwrap();
    assert_eq!(exec(&daemon, &alive, "cat /data/on").await.stdout, "on\nmore\n");
    daemon.stop(true).await.unwrap();
    assert!(workers_of(directory.path()).is_empty());
    let left: Vec<_> = std::fs::read_dir(directory.path().join("registry")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn a_second_daemon_stays_out() {
    let world = World::new().await;
    match Daemon::start(config(world.path())).await {
        Err(DaemonError::State(text)) => assert!(text.contains("another daemon uses"), "{text}"),
        other => panic!("{other:?}"),
    }
    world.end().await;
}

async fn a_stopped_daemon_leaves_all() {
    let directory = tempfile::tempdir().unwrap();
    let one = id("one");
    let first = Daemon::start(config(directory.path())).await.unwrap();
    first.mount(&one, request("MY_BUCKET", "/data", MountOptions::default())).await.unwrap();
    let pid = first.sandbox(&one).await.unwrap().pid();
    first.stop(false).await.unwrap();
    assert!(matches!(first.sandbox(&one).await, Err(DaemonError::Stopping)));
    drop(first);
    // Tasks that watch end with the runtime; here, as long as they hold the lock, the next one cannot start.
    let second = loop {
        match Daemon::start(config(directory.path())).await {
            Err(DaemonError::State(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(second.sandbox(&one).await.unwrap().pid(), pid);
    assert_eq!(exec(&second, &one, "echo x > /data/x; cat /data/x").await.stdout, "x\n");
    second.stop(true).await.unwrap();
}
