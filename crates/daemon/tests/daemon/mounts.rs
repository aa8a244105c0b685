//! Mounts, one promise after the other.

use std::sync::Arc;

use sandpail_daemon::{DaemonError, MountErrorKind, MountOptions, MountRequest, MountSource};
use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_spec::{Credentials, SecretKey};
use sandpail_store::memory::MemoryStore;

use crate::world::{World, id, mount_error, request, until, workers_of};

crate::tests![
    a_binding_is_a_directory,
    a_second_mount_on_a_path_is_refused_and_the_first_works_on,
    what_is_wrong_is_told_and_nothing_is_left,
    read_only_and_prefix,
    two_sandboxes_see_each_others_files_at_once,
    owners_are_the_sandboxs,
    a_mount_in_use_is_not_taken_away,
    what_was_there_comes_back,
    a_worker_that_dies_is_reported_and_takes_no_writes,
    what_was_closed_survives_its_worker,
    a_mount_goes_on_with_another_process,
    endpoints_and_their_causes,
    s3fs_options_change_the_mount,
    a_local_bucket_is_kept_equal,
    mounts_of_one_sandbox_wait_for_each_other,
    a_local_bucket_does_not_follow_links_out_of_the_sandbox,
    a_mount_that_hangs_does_not_hold_up_the_end,
];

async fn a_binding_is_a_directory() {
    let world = World::new().await;
    let one = id("one");
    world.put("MY_BUCKET", "in/there.txt", "from outside").await;
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    assert_eq!(world.run(&one, "cat /data/in/there.txt").await, "from outside");
    world.run(&one, "mkdir /data/out && echo hello > /data/out/a.txt").await;
    assert_eq!(world.get("MY_BUCKET", "out/a.txt").await.unwrap(), "hello\n");
    let mounts = world.daemon.list_mounts(&one).await;
    assert_eq!(mounts.len(), 1);
    let mount = &mounts[0];
    assert_eq!((mount.mount_path.as_str(), mount.mode, mount.state), ("/data", "binding", "serving"));
    assert_eq!(
        (mount.bucket.as_str(), mount.binding.as_deref(), mount.prefix.as_str()),
        ("my-bucket", Some("MY_BUCKET"), "/")
    );
    // The host itself sees nothing of it.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(" /data "), "{table}");
    // Nor does the sandbox see anything of the host.
    let inside = world.run(&one, "grep ' /data ' /proc/self/mountinfo").await;
    assert!(inside.contains("fuse.sandpail my-bucket") && !inside.contains(world.path().to_str().unwrap()), "{inside}");
    world.daemon.unmount(&one, "/data/", false).await.unwrap();
    assert_eq!(world.exec(&one, "test -e /data").await.code, 1);
    assert!(world.daemon.list_mounts(&one).await.is_empty());
    let (kind, text) = mount_error(world.daemon.unmount(&one, "/data", false).await);
    assert_eq!((kind, text.as_str()), (MountErrorKind::InvalidConfig, "No active mount found at path: /data"));
    // At once at the same path, as clients do around persist and hydrate.
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    assert_eq!(world.run(&one, "cat /data/out/a.txt").await, "hello\n");
    world.daemon.destroy_sandbox(&one).await.unwrap();
    assert_eq!(world.keys("MY_BUCKET").await, ["in/there.txt", "out/", "out/a.txt"]);
    world.end().await;
}

async fn a_second_mount_on_a_path_is_refused_and_the_first_works_on() {
    let world = World::new().await;
    let one = id("one");
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.run(&one, "echo 1 > /data/first").await;
    let (kind, text) = mount_error(world.mount(&one, "OTHER", "//data/.").await);
    assert_eq!(kind, MountErrorKind::InvalidConfig);
    assert!(text.starts_with("Mount path already in use: /data. ") && text.contains("my-bucket"), "{text}");
    assert_eq!(world.run(&one, "cat /data/first; echo 2 >> /data/first; cat /data/first").await, "1\n1\n2\n");
    assert_eq!(workers_of(world.path()).len(), 1);
    // At another path of the same sandbox the same bucket is no problem.
    world.mount(&one, "MY_BUCKET", "/again").await.unwrap();
    assert_eq!(world.run(&one, "cat /again/first").await, "1\n2\n");
    world.end().await;
}

async fn what_is_wrong_is_told_and_nothing_is_left() {
    let world = World::new().await;
    let one = id("one");
    let (kind, text) = mount_error(world.mount(&one, "NOPE", "/data").await);
    assert_eq!(kind, MountErrorKind::InvalidConfig);
    assert!(text.starts_with("R2 binding \"NOPE\" not found in Worker env. "), "{text}");
    for path in ["data", "/", "/proc/x", "/sys", "/dev/../dev"] {
        assert_eq!(mount_error(world.mount(&one, "MY_BUCKET", path).await).0, MountErrorKind::InvalidConfig, "{path}");
    }
    // No sandbox was started for any of these.
    assert!(world.daemon.list_sandboxes().await.is_empty());
    world.run(&one, "echo file > /tmp/file").await;
    let (kind, text) = mount_error(world.mount(&one, "MY_BUCKET", "/tmp/file").await);
    assert_eq!(kind, MountErrorKind::MountFailed);
    assert!(text.starts_with("S3FS mount failed: "), "{text}");
    assert_eq!(world.run(&one, "cat /tmp/file").await, "file\n");
    until("no worker is left", || async { workers_of(world.path()).is_empty() }).await;
    assert!(world.daemon.list_mounts(&one).await.is_empty());
    world.end().await;
}

async fn read_only_and_prefix() {
    let world = World::new().await;
    let one = id("one");
    for key in ["logs/a.txt", "logs-x/b.txt", "c.txt"] {
        world.put("MY_BUCKET", key, key.to_owned()).await;
    }
    let options = |prefix: &str, read_only| MountOptions {
        prefix: Some(prefix.to_owned()),
        read_only,
        ..MountOptions::default()
    };
    world.daemon.mount(&one, request("MY_BUCKET", "/ro", options("/logs", true))).await.unwrap();
    world.daemon.mount(&one, request("MY_BUCKET", "/rw", options("/logs/", false))).await.unwrap();
    assert_eq!(world.run(&one, "ls /ro; cat /ro/a.txt").await, "a.txt\nlogs/a.txt");
    let refused = world.exec(&one, "echo x > /ro/new.txt").await;
    assert!(refused.code != 0 && refused.stderr.contains("Read-only file system"), "{refused:?}");
    let refused = world.exec(&one, "mount -o remount,rw /ro; rm /ro/a.txt").await;
    assert!(refused.code != 0, "{refused:?}");
    world.run(&one, "echo new > /rw/new.txt").await;
    assert_eq!(world.run(&one, "cat /ro/new.txt").await, "new\n");
    assert_eq!(world.keys("MY_BUCKET").await, ["c.txt", "logs-x/b.txt", "logs/a.txt", "logs/new.txt"]);
    world.end().await;
}

async fn two_sandboxes_see_each_others_files_at_once() {
    let world = World::new().await;
    let (one, two) = (id("one"), id("two"));
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.mount(&two, "MY_BUCKET", "/workspace/deep/data").await.unwrap();
    for round in 0..5 {
        world.run(&two, "ls /workspace/deep/data").await;
        world.run(&one, &format!("echo {round} > /data/{round}")).await;
        assert_eq!(world.run(&two, &format!("cat /workspace/deep/data/{round}")).await, format!("{round}\n"));
    }
    // The end of one is nothing to the other.
    world.daemon.destroy_sandbox(&one).await.unwrap();
    assert_eq!(world.run(&two, "ls /workspace/deep/data | wc -l").await.trim(), "5");
    world.end().await;
}

async fn owners_are_the_sandboxs() {
    let world = World::new().await;
    let one = id("one");
    world.put("MY_BUCKET", "plain", "x").await;
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    assert_eq!(world.run(&one, "stat -c '%u %g %a' /data /data/plain").await, "0 0 755\n0 0 644\n");
    world.run(&one, "echo x > /data/mine; chown 1000:100 /data/mine; chmod 600 /data/mine").await;
    assert_eq!(world.run(&one, "stat -c '%u %g %a' /data/mine").await, "1000 100 600\n");
    // In the bucket it is as the sandbox sees it, and so for the next one.
    let metadata = world.daemon.head_object("MY_BUCKET", "mine").await.unwrap().custom_metadata;
    assert_eq!((metadata["uid"].as_str(), metadata["gid"].as_str()), ("1000", "100"));
    let two = id("two");
    world.mount(&two, "MY_BUCKET", "/data").await.unwrap();
    assert_eq!(world.run(&two, "stat -c '%u %g' /data/mine").await, "1000 100\n");
    world.end().await;
}

async fn a_mount_in_use_is_not_taken_away() {
    let world = World::new().await;
    let one = id("one");
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.run(&one, "cd /data && nohup sh -c 'echo $$ > /tmp/pid; exec sleep 1000' >/dev/null 2>&1 & sleep 0.3").await;
    world.run(&one, "echo kept > /data/kept").await;
    let (kind, text) = mount_error(world.daemon.unmount(&one, "/data", false).await);
    assert_eq!(kind, MountErrorKind::UnmountFailed);
    assert!(text.contains("/data") && text.contains("sleep"), "{text}");
    // It stays usable.
    assert_eq!(world.run(&one, "echo more >> /data/kept; cat /data/kept").await, "kept\nmore\n");
    assert_eq!(world.daemon.list_mounts(&one).await[0].state, "serving");
    world.daemon.unmount(&one, "/data", true).await.unwrap();
    assert!(world.daemon.list_mounts(&one).await.is_empty());
    assert_eq!(world.get("MY_BUCKET", "kept").await.unwrap(), "kept\nmore\n");
    until("no worker is left", || async { workers_of(world.path()).is_empty() }).await;
    world.end().await;
}

async fn what_was_there_comes_back() {
    let world = World::new().await;
    let one = id("one");
    world.run(&one, "mkdir /workspace/data; echo own > /workspace/data/own").await;
    world.mount(&one, "MY_BUCKET", "/workspace/data").await.unwrap();
    assert_eq!(world.run(&one, "ls -A /workspace/data").await, "");
    world.daemon.unmount(&one, "/workspace/data", false).await.unwrap();
    assert_eq!(world.run(&one, "cat /workspace/data/own").await, "own\n");
    // Directories that the mount made go, those that were there stay.
    world.mount(&one, "MY_BUCKET", "/workspace/data/a/b/c").await.unwrap();
    world.daemon.unmount(&one, "/workspace/data/a/b/c", false).await.unwrap();
    assert_eq!(world.run(&one, "ls -A /workspace/data").await, "own\n");
    world.end().await;
}

async fn a_worker_that_dies_is_reported_and_takes_no_writes() {
    let world = World::with(|config| config.mounts.survive = false).await;
    let one = id("one");
    let mut events = world.daemon.events();
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.run(&one, "echo stored > /data/a").await;
    let worker = workers_of(world.path());
    assert_eq!(worker.len(), 1);
    let pid = rustix::process::Pid::from_raw(worker[0]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    loop {
        let event = events.recv().await.unwrap();
        if event.kind == "mount.failed" {
            assert_eq!((event.sandbox.as_deref(), event.mount_path.as_deref()), (Some("one"), Some("/data")));
            break;
        }
    }
    assert_eq!(world.daemon.list_mounts(&one).await[0].state, "failed");
    // Nothing hangs, and nothing is written to the directory below.
    let refused = world.exec(&one, "timeout 5 sh -c 'echo lost > /data/b'").await;
    assert!(refused.code != 0 && refused.code != 124, "{refused:?}");
    // Mounting again is enough.
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    assert_eq!(world.run(&one, "ls /data; cat /data/a").await, "a\nstored\n");
    world.end().await;
}

async fn a_mount_goes_on_with_another_process() {
    let world = World::new().await;
    let one = id("one");
    let mut events = world.daemon.events();
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.run(&one, "echo stored > /data/a").await;
    // A program that has a file open and writes to it over three kills.
    let writing =
        "exec 3>/data/open; for n in $(seq 60); do echo $n >&3; echo $n >/data/f$n; cat /data/a; sleep 0.02; done";
    let writing = world.run(&one, writing);
    let killing = async {
        for _ in 0..3 {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let workers = workers_of(world.path());
            assert_eq!(workers.len(), 1);
            let pid = rustix::process::Pid::from_raw(workers[0]).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            while events.recv().await.unwrap().kind != "mount.restarted" {}
        }
    };
    let (written, ()) = tokio::join!(writing, killing);
    assert_eq!(written, "stored\n".repeat(60));
    let mounts = world.daemon.list_mounts(&one).await;
    assert_eq!((mounts[0].state, mounts[0].unstored), ("serving", 0));
    let numbers: String = (1..=60).map(|n| format!("{n}\n")).collect();
    assert_eq!(world.get("MY_BUCKET", "open").await.unwrap(), numbers);
    assert_eq!(world.get("MY_BUCKET", "f60").await.unwrap(), "60\n");
    // The guest's root takes its mount away: that is no crash.
    world.exec(&one, "umount /data").await;
    world.daemon.unmount(&one, "/data", true).await.unwrap();
    crate::world::until("the worker has ended", || async { workers_of(world.path()).is_empty() }).await;
    world.end().await;
}

async fn what_was_closed_survives_its_worker() {
    let world = World::with(|config| config.mounts.survive = false).await;
    let one = id("one");
    let mut events = world.daemon.events();
    let write_back = || MountOptions { write_back: true, ..MountOptions::default() };
    world.daemon.mount(&one, request("MY_BUCKET", "/data", write_back())).await.unwrap();
    world.run(&one, "echo closed > /data/a.tmp && mv /data/a.tmp /data/a && mkdir /data/d && echo b > /data/d/b").await;
    let pid = rustix::process::Pid::from_raw(workers_of(world.path())[0]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    while events.recv().await.unwrap().kind != "mount.failed" {}
    world.daemon.mount(&one, request("MY_BUCKET", "/data", write_back())).await.unwrap();
    assert_eq!(world.get("MY_BUCKET", "a").await.unwrap(), "closed\n");
    assert_eq!(world.run(&one, "cat /data/a /data/d/b; ls /data").await, "closed\nb\na\nd\n");
    // The end of the sandbox waits for the bucket.
    world.run(&one, "echo last > /data/last").await;
    world.daemon.destroy_sandbox(&one).await.unwrap();
    assert_eq!(world.keys("MY_BUCKET").await, ["a", "d/", "d/b", "last"]);
    world.end().await;
}

fn credentials(secret: &str) -> Option<Credentials> {
    Some(Credentials {
        access_key_id: "AKIDEXAMPLE".to_owned(),
        secret_access_key: SecretKey::new(secret),
        session_token: None,
    })
}

async fn endpoints_and_their_causes() {
    let world = World::new().await;
    let one = id("one");
    let keys = KeyPair::new("AKIDEXAMPLE", "right-secret");
    let server = ServerOptions::new(keys).bucket("remote", Arc::new(MemoryStore::new()));
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), server).await.unwrap();
    let ask = |bucket: &str, endpoint: &str, secret: &str| MountRequest {
        source: MountSource::Bucket(bucket.to_owned()),
        mount_path: "/data".to_owned(),
        options: MountOptions {
            endpoint: Some(endpoint.to_owned()),
            credentials: credentials(secret),
            ..MountOptions::default()
        },
    };
    let endpoint = server.endpoint();
    // Somebody who speaks no S3, and nobody at all.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plain_address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in plain.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
        }
    });
    for (request, cause) in [
        (ask("absent", &endpoint, "right-secret"), "bucket not found: "),
        (ask("remote", &endpoint, "wrong-secret"), "access denied: "),
        (ask("remote", &format!("http://{nobody}"), "right-secret"), "endpoint unreachable: "),
        (ask("remote", &format!("http://{plain_address}"), "right-secret"), "endpoint does not speak S3: "),
    ] {
        let (kind, text) = mount_error(world.daemon.mount(&one, request).await);
        assert_eq!(kind, MountErrorKind::MountFailed);
        assert!(text.starts_with(&format!("S3FS mount failed: {cause}")), "{text}");
        assert!(!text.contains("-secret"), "{text}");
        assert_eq!(world.exec(&one, "test -e /data").await.code, 1);
    }
    world.daemon.mount(&one, ask("remote", &endpoint, "right-secret")).await.unwrap();
    world
        .run(&one, "head -c 20000000 /dev/zero > /data/large; cp /data/large /data/copy; cmp /data/large /data/copy")
        .await;
    let mount = &world.daemon.list_mounts(&one).await[0];
    assert_eq!((mount.mode, mount.endpoint.as_deref()), ("endpoint", Some(endpoint.as_str())));
    // No key is where anybody could read it: not in arguments, the environment, records or logs.
    let worker = workers_of(world.path())[0];
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{worker}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("right-secret"), "{file}");
    }
    let files = std::process::Command::new("grep").args(["-rl", "right-secret"]).arg(world.path()).output().unwrap();
    assert_eq!(String::from_utf8(files.stdout).unwrap(), "");
    world.daemon.unmount(&one, "/data", false).await.unwrap();
    world.end().await;
}

async fn s3fs_options_change_the_mount() {
    let world = World::new().await;
    let one = id("one");
    let options = MountOptions {
        s3fs_options: ["uid=1000,gid=100", "umask=0077", "noexec", "enable_noobj_cache"].map(str::to_owned).to_vec(),
        ..MountOptions::default()
    };
    world.put("MY_BUCKET", "x", "#!/bin/sh\necho ran\n").await;
    world.daemon.mount(&one, request("MY_BUCKET", "/data", options)).await.unwrap();
    assert_eq!(world.run(&one, "stat -c '%u %g %a' /data/x").await, "1000 100 600\n");
    world.run(&one, "chmod 777 /data/x").await;
    assert_eq!(world.exec(&one, "/data/x").await.code, 126);
    let options = MountOptions { s3fs_options: vec!["frobnicate".to_owned()], ..MountOptions::default() };
    let (kind, text) = mount_error(world.daemon.mount(&one, request("MY_BUCKET", "/b", options)).await);
    assert_eq!(kind, MountErrorKind::InvalidConfig);
    assert_eq!(text, "s3fs option \"frobnicate\" cannot be overridden for R2 binding mounts");
    world.end().await;
}

async fn a_local_bucket_is_kept_equal() {
    let world = World::with(|config| config.mounts.sync_interval = std::time::Duration::from_millis(200)).await;
    let one = id("one");
    world.put("MY_BUCKET", "sub/seed.txt", "seed").await;
    let options = MountOptions { local_bucket: true, ..MountOptions::default() };
    world.daemon.mount(&one, request("MY_BUCKET", "/data", options)).await.unwrap();
    // The first sync is done when the call returns, and it is a plain directory.
    assert_eq!(world.run(&one, "cat /data/sub/seed.txt; stat -c %u /data/sub/seed.txt").await, "seed0\n");
    assert_eq!(world.exec(&one, "grep -q ' /data ' /proc/self/mountinfo").await.code, 1);
    world.run(&one, "echo up > /data/up.txt").await;
    until("the file is in the bucket", || async { world.get("MY_BUCKET", "up.txt").await.is_ok() }).await;
    let (kind, text) = mount_error(world.mount(&one, "OTHER", "/data").await);
    assert!(kind == MountErrorKind::InvalidConfig && text.starts_with("Mount path already in use: /data"), "{text}");
    // What is written last goes up before the unmount is over; the files stay.
    world.run(&one, "echo last > /data/last.txt").await;
    world.daemon.unmount(&one, "/data", false).await.unwrap();
    assert_eq!(world.get("MY_BUCKET", "last.txt").await.unwrap(), "last\n");
    assert_eq!(world.run(&one, "cat /data/last.txt").await, "last\n");
    world.end().await;
}

async fn mounts_of_one_sandbox_wait_for_each_other() {
    let world = World::new().await;
    let one = id("one");
    let calls = (0..8).map(|_| world.mount(&one, "MY_BUCKET", "/data"));
    let results = futures_util::future::join_all(calls).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results.into_iter().filter(Result::is_err) {
        let is_taken =
            matches!(&result, Err(DaemonError::Mount(error)) if error.message.starts_with("Mount path already"));
        assert!(is_taken, "{result:?}");
    }
    world.run(&one, "echo x > /data/x").await;
    assert_eq!(workers_of(world.path()).len(), 1);
    world.end().await;
}

async fn a_local_bucket_does_not_follow_links_out_of_the_sandbox() {
    let exposed = tempfile::tempdir_in("/opt").unwrap();
    std::fs::write(exposed.path().join("key"), "the host's").unwrap();
    let shown = exposed.path().to_owned();
    let world = World::with(|config| config.sandbox.expose.push(shown)).await;
    let one = id("one");
    let target = exposed.path().display();
    assert_eq!(world.run(&one, &format!("mkdir -p /workspace && ls {target}")).await, "key\n");
    for (name, target) in [("p", "/proc"), ("s", "/sys"), ("e", exposed.path().to_str().unwrap())] {
        world.run(&one, &format!("ln -s {target} /workspace/{name}")).await;
        let options = MountOptions { local_bucket: true, ..MountOptions::default() };
        let path = format!("/workspace/{name}");
        let (kind, text) = mount_error(world.daemon.mount(&one, request("MY_BUCKET", &path, options)).await);
        assert_eq!(kind, MountErrorKind::MountFailed, "{name}: {text}");
    }
    assert_eq!(world.keys("MY_BUCKET").await, [""; 0]);
    // A link that stays inside is the guest's own business.
    world.run(&one, "mkdir /workspace/real && ln -s real /workspace/l && echo x > /workspace/real/x").await;
    let options = MountOptions { local_bucket: true, ..MountOptions::default() };
    world.daemon.mount(&one, request("MY_BUCKET", "/workspace/l", options)).await.unwrap();
    assert_eq!(world.keys("MY_BUCKET").await, ["x"]);
    world.end().await;
}

async fn a_mount_that_hangs_does_not_hold_up_the_end() {
    use rustix::process::{Pid, Signal, kill_process};
    let world = World::with(|config| config.mounts.drain_timeout = std::time::Duration::from_secs(1)).await;
    let one = id("one");
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    let [worker] = workers_of(world.path())[..] else { panic!("not one worker") };
    kill_process(Pid::from_raw(worker).unwrap(), Signal::STOP).unwrap();
    // Its path leads through a file system that does not answer.
    let (daemon, two) = (world.daemon.clone(), one.clone());
    let hanging =
        tokio::spawn(async move { daemon.mount(&two, request("OTHER", "/data/a/b", MountOptions::default())).await });
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!hanging.is_finished());
    let begun = std::time::Instant::now();
    world.daemon.destroy_sandbox(&one).await.unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), hanging).await.unwrap().unwrap();
    assert!(ended.is_err());
    // The name is free, and nothing of the old one is written down.
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.end().await;
}
