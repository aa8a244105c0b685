//! Commands: forms, codes, streams, time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sandpail_sandbox::{ExecEvent, ExecSpec, SandboxSpec};

use crate::world::{Done, World, collect, exec, run, shell, words};

crate::tests![
    forms_and_codes,
    environment_and_directory,
    standard_input,
    a_timeout_kills_all_descendants,
    children_left_behind_do_not_hold_the_exit,
    output_waits_for_its_reader,
    what_waits_for_its_reader_outlives_the_command,
    without_a_reader_a_command_runs_on,
    large_command_lines,
];

async fn forms_and_codes() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let done = run(&sandbox, &["echo", "a  b", "$HOME", "*", "", "ü\n"]).await;
    assert_eq!((done.stdout.as_str(), done.code), ("a  b $HOME *  ü\n\n", 0));
    let done = shell(&sandbox, "pwd; id -u; echo err >&2; exit 3").await;
    assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.code), ("/workspace\n0\n", "err\n", 3));
    shell(&sandbox, "printf 'echo no interpreter' >script; chmod +x script; printf '#!/no/such' >bad; chmod +x bad")
        .await;
    for (argv, code) in [
        (&["exit", "42"][..], 42),
        (&["cd", "/tmp"], 0),
        (&["eval", "exit 7"], 7),
        (&["no-such-program"], 127),
        (&["./no-such-program"], 127),
        (&[""], 127),
        (&["/etc/passwd"], 126),
        (&["/etc"], 126),
        (&["./script"], 0),
        (&["./bad"], 126),
        (&["bash", "-c", "kill -9 $$"], 137),
        (&["bash", "-c", "kill -TERM $$"], 143),
    ] {
        let done = run(&sandbox, argv).await;
        let is_code = done.code == code || (argv == ["./bad"] && done.code == 127);
        assert!(is_code, "{argv:?}: {done:?}");
    }
    let done = run(&sandbox, &["no-such-program"]).await;
    assert!(done.stderr.contains("not found"), "{}", done.stderr);
    let events = sandbox.exec(ExecSpec::default()).await.unwrap();
    assert!(collect(events).await.unwrap_err().contains("no command"));
    sandbox.destroy().await.unwrap();
    assert!(!sandbox.is_alive());
}

async fn environment_and_directory() {
    let world = World::new();
    let env = [("A".to_owned(), "of the sandbox".to_owned()), ("B".to_owned(), "b".to_owned())].into();
    let sandbox = world.create(SandboxSpec { env, ..SandboxSpec::default() }).await;
    let spec = ExecSpec {
        argv: words(&["bash", "-c", "echo $A $B $HOME $USER $LANG; pwd; umask; ulimit -c"]),
        cwd: Some(PathBuf::from("/usr/share")),
        env: [("A".to_owned(), "own".to_owned())].into(),
        ..ExecSpec::default()
    };
    let done = exec(&sandbox, spec).await.unwrap();
    assert_eq!(done.stdout, "own b /root root C.UTF-8\n/usr/share\n0022\n0\n");
    let cwd = Some(PathBuf::from("/no/such"));
    let failed = exec(&sandbox, ExecSpec { argv: words(&["true"]), cwd, ..ExecSpec::default() }).await;
    assert_eq!(failed, Err("working directory /no/such: No such file or directory".to_owned()));
    // Descriptors of the daemon's do not get in; `ls` has its own for the directory.
    assert_eq!(run(&sandbox, &["ls", "/proc/self/fd"]).await.stdout, "0\n1\n2\n3\n");
    sandbox.destroy().await.unwrap();
}

async fn standard_input() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let text = "x".repeat(1_000_000);
    let spec = ExecSpec { argv: words(&["cat"]), stdin: Bytes::from(text.clone()), ..ExecSpec::default() };
    assert!(exec(&sandbox, spec.clone()).await.unwrap().stdout == text);
    assert_eq!(run(&sandbox, &["cat"]).await, Done::default());
    // Not all of it is read, which is the command's own affair.
    let spec = ExecSpec { argv: words(&["head", "-c", "3"]), ..spec };
    assert_eq!(exec(&sandbox, spec).await.unwrap().stdout, "xxx");
    sandbox.destroy().await.unwrap();
}

async fn a_timeout_kills_all_descendants() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let line = "trap '' TERM; sleep 1001 & (setsid sleep 1002 &) ; setsid bash -c 'sleep 1003 & wait' & \
                (exec 1>&- 2>&-; setsid sh -c 'sleep 1004 & exit') ; echo begun; sleep 1005";
    let timeout = Some(Duration::from_millis(700));
    let start = Instant::now();
    let done = exec(&sandbox, ExecSpec { argv: words(&["bash", "-c", line]), timeout, ..ExecSpec::default() }).await;
    let done = done.unwrap();
    assert_eq!((done.stdout.as_str(), done.code), ("begun\n", 124), "{done:?}");
    assert!(done.stderr.ends_with("Command timed out after 700ms\n"), "{}", done.stderr);
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(shell(&sandbox, "pgrep -c sleep").await.stdout, "0\n");
    sandbox.destroy().await.unwrap();
}

async fn children_left_behind_do_not_hold_the_exit() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let line = "(for i in $(seq 600); do sleep 0.05; echo tick || exit; done; ) & echo $! ; echo out; exit 5";
    let start = Instant::now();
    let done = shell(&sandbox, line).await;
    assert!(done.code == 5 && done.stdout.contains("out"), "{done:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // It goes on, and nothing kills it for writing to nobody.
    let pid = done.stdout.lines().next().unwrap().to_owned();
    assert_eq!(shell(&sandbox, &format!("sleep 0.5; kill -0 {pid} && echo lives")).await.stdout, "lives\n");
    sandbox.destroy().await.unwrap();
}

async fn output_waits_for_its_reader() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let line = "yes | head -c 30000000; echo done >/workspace/done";
    let spec = ExecSpec { argv: words(&["bash", "-c", line]), ..ExecSpec::default() };
    let events = sandbox.exec(spec).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(run(&sandbox, &["test", "-e", "/workspace/done"]).await.code, 1, "the command is held up");
    let done = collect(events).await.unwrap();
    assert_eq!((done.stdout.len(), done.code), (30_000_000, 0));
    assert_eq!(run(&sandbox, &["test", "-e", "/workspace/done"]).await.code, 0);
    sandbox.destroy().await.unwrap();
}

async fn what_waits_for_its_reader_outlives_the_command() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    // More pieces than events may wait, but fewer bytes than a pipe holds: it ends while one of them is handed on.
    let line = "for i in $(seq 40); do echo out $i; echo err $i >&2; sleep 0.01; done; touch /workspace/done";
    let spec = ExecSpec { argv: words(&["bash", "-c", line]), ..ExecSpec::default() };
    let events = sandbox.exec(spec).await.unwrap();
    let ended = "for i in $(seq 400); do [ -e done ] && exec sleep 0.2; sleep 0.05; done; exit 1";
    assert_eq!(shell(&sandbox, ended).await.code, 0);
    let done = collect(events).await.unwrap();
    let lines = |word: &str| (1..=40).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert_eq!((done.stdout, done.stderr, done.code), (lines("out"), lines("err"), 0));
    sandbox.destroy().await.unwrap();
}

async fn without_a_reader_a_command_runs_on() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let line = "echo begun; yes | head -c 10000000; echo done >/workspace/done";
    let spec = ExecSpec { argv: words(&["bash", "-c", line]), ..ExecSpec::default() };
    let mut events = sandbox.exec(spec).await.unwrap();
    assert!(matches!(events.recv().await, Some(ExecEvent::Stdout(_))));
    drop(events);
    let done = shell(&sandbox, "for i in $(seq 200); do [ -e done ] && exit 0; sleep 0.05; done; exit 1").await;
    assert_eq!(done.code, 0);
    sandbox.destroy().await.unwrap();
}

async fn large_command_lines() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let word = "w".repeat(100_000);
    let argv: Vec<&str> = std::iter::once("echo").chain([word.as_str(); 10]).collect();
    assert_eq!(run(&sandbox, &argv).await.stdout.len(), 1_000_010);
    // One word longer than the kernel takes.
    let long = "w".repeat(200_000);
    let spec = ExecSpec { argv: words(&["/bin/echo", &long]), ..ExecSpec::default() };
    assert!(exec(&sandbox, spec).await.unwrap_err().contains("Argument list too long"));
    sandbox.destroy().await.unwrap();
}
