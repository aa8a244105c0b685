//! Beginnings and ends: daemons that restart, sandboxes that die, many at once.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sandpail_sandbox::{ExecSpec, Limits, Sandbox, SandboxSpec, SessionId};

use crate::world::{World, exec, new_id, run, runtime, shell, words};

crate::tests![
    a_destroyed_sandbox_leaves_nothing,
    a_restarted_daemon_finds_its_sandboxes,
    a_failed_start_leaves_nothing,
    a_deep_tree_is_no_way_to_stay,
    twenty_at_once,
    destroying_ends_open_streams,
];

/// What the host could have kept of sandboxes.
fn traces() -> (String, Vec<String>) {
    let mut groups = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for group in fs::read_dir(hierarchy.path().join("sandpail")).into_iter().flatten().flatten() {
            if group.path().is_dir() {
                groups.push(group.path().display().to_string());
            }
        }
    }
    (fs::read_to_string("/proc/self/mounts").unwrap(), groups)
}

fn descriptor_count() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn limited() -> SandboxSpec {
    let limits = Limits { memory: Some(64 << 20), pids: Some(50), cpus: Some(1.0), ..Limits::default() };
    SandboxSpec { limits, ..SandboxSpec::default() }
}

async fn a_destroyed_sandbox_leaves_nothing() {
    let world = World::new();
    // Once before counting: the runtime opens what it keeps.
    world.sandbox().await.destroy().await.unwrap();
    let (mounts, groups) = traces();
    let descriptors = descriptor_count();
    for _ in 0..3 {
        let sandbox = world.create(limited()).await;
        let pid = sandbox.pid();
        let spec = ExecSpec { argv: words(&["sh", "-c", "setsid sleep 1000 & sleep 1000"]), ..ExecSpec::default() };
        let events = sandbox.exec(spec).await.unwrap();
        assert_eq!(shell(&sandbox, "mkdir x; touch x/y; rm /usr/bin/git; chmod 0 x").await.code, 0);
        sandbox.destroy().await.unwrap();
        drop(events);
        assert!(!sandbox.is_alive());
        sandbox.ended().await;
        assert!(!Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid));
        assert!(!world.directory.path().join("state").join(sandbox.id().as_str()).exists());
        // Again is no error.
        sandbox.destroy().await.unwrap();
    }
    assert_eq!(traces(), (mounts, groups));
    // Tasks that hold the last descriptors end soon.
    for _ in 0..100 {
        if descriptor_count() <= descriptors {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} descriptors, {descriptors} before", descriptor_count());
}

/// Only the host's init can take a zombie away, in its own time.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

async fn a_restarted_daemon_finds_its_sandboxes() {
    let mut world = World::new();
    let living = world.sandbox().await;
    let dead = world.sandbox().await;
    let session = Some(SessionId::parse("s").unwrap());
    let spec = |words_: &[&str]| ExecSpec { argv: words(words_), session: session.clone(), ..ExecSpec::default() };
    assert_eq!(exec(&living, spec(&["export", "A=1"])).await.unwrap().code, 0);
    let pid = dead.pid();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    dead.ended().await;
    let (living_id, dead_id, map) = (living.id().clone(), dead.id().clone(), living.id_map());
    drop((living, dead));
    world.runtime = runtime(world.directory.path());
    let recovered = world.runtime.recover().await.unwrap();
    assert_eq!(recovered.removed, [dead_id]);
    let [living]: [Sandbox; 1] = recovered.living.try_into().unwrap();
    assert_eq!((living.id(), living.id_map()), (&living_id, map));
    assert_eq!(exec(&living, spec(&["bash", "-c", "echo $A"])).await.unwrap().stdout, "1\n");
    assert_eq!(run(&living, &["echo", "again"]).await.stdout, "again\n");
    let another = world.sandbox().await;
    assert_ne!(another.id_map().base, map.base, "ranges of ids are not shared");
    living.destroy().await.unwrap();
    another.destroy().await.unwrap();
    let recovered = world.runtime.recover().await.unwrap();
    assert!(recovered.living.is_empty() && recovered.removed.is_empty());
}

async fn a_failed_start_leaves_nothing() {
    let world = World::new();
    let before = traces();
    let spec = SandboxSpec { expose: vec!["/no/such/directory".into()], ..limited() };
    let id = new_id();
    let error = world.runtime.create(id.clone(), spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/directory"), "{error}");
    assert_eq!(traces(), before);
    assert!(!world.directory.path().join("state").join(id.as_str()).exists());
    let sandbox = world.runtime.create(id.clone(), SandboxSpec::default()).await.unwrap();
    world.runtime.create(id, SandboxSpec::default()).await.unwrap_err();
    sandbox.destroy().await.unwrap();
}

async fn a_deep_tree_is_no_way_to_stay() {
    const DIG: &str = "
import os
for _ in range(1000):
    os.mkdir('d')
    os.chdir('d')
print('dug')
";
    let mut world = World::new();
    let [destroyed, dead] = [world.sandbox().await, world.sandbox().await];
    for sandbox in [&destroyed, &dead] {
        let done = run(sandbox, &["python3", "-c", DIG]).await;
        assert_eq!(done.stdout, "dug\n", "{done:?}");
    }
    destroyed.destroy().await.unwrap();
    let pid = rustix::process::Pid::from_raw(dead.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    dead.ended().await;
    let id = dead.id().clone();
    drop(dead);
    world.runtime = runtime(world.directory.path());
    assert_eq!(world.runtime.recover().await.unwrap().removed, [id]);
    let left: Vec<_> = fs::read_dir(world.directory.path().join("state")).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name() == "_base"), "{left:?}");
}

async fn twenty_at_once() {
    let world = World::new();
    let tasks: Vec<_> = (0..20)
        .map(|index| {
            let runtime = world.runtime.clone();
            tokio::spawn(async move {
                let sandbox = runtime.create(new_id(), SandboxSpec::default()).await.unwrap();
                let text = index.to_string();
                assert_eq!(shell(&sandbox, &format!("echo {index} >f; cat f")).await.stdout.trim(), text);
                sandbox
            })
        })
        .collect();
    let mut sandboxes = Vec::new();
    for task in tasks {
        sandboxes.push(task.await.unwrap());
    }
    let bases: std::collections::BTreeSet<u32> = sandboxes.iter().map(|sandbox| sandbox.id_map().base).collect();
    assert_eq!(bases.len(), 20);
    for sandbox in sandboxes {
        sandbox.destroy().await.unwrap();
    }
}

async fn destroying_ends_open_streams() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let spec = ExecSpec { argv: words(&["sleep", "1000"]), ..ExecSpec::default() };
    let events = sandbox.exec(spec.clone()).await.unwrap();
    let other = sandbox.clone();
    tokio::spawn(async move { other.destroy().await.unwrap() });
    let ended = tokio::time::timeout(Duration::from_secs(10), crate::world::collect(events)).await.unwrap();
    assert!(ended.unwrap_err().contains("has ended"));
    sandbox.ended().await;
    assert!(sandbox.exec(spec).await.is_err());
}
