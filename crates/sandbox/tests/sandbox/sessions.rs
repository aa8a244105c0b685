//! Sessions, terminals, background processes.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use sandpail_sandbox::{
    ExecEvent, ExecSpec, ProcessSpec, ProcessState, Pty, PtyEvent, PtyInput, PtySpec, Sandbox, SandboxError,
    SandboxSpec, SessionId, SessionSpec,
};

use crate::world::{Done, World, collect, earlier_daemon, exec, new_id, run, runtime, shell, words};

crate::tests![
    a_session_keeps_its_state,
    a_session_survives_its_commands,
    commands_of_a_session_take_turns,
    sessions_are_made_and_deleted,
    a_terminal,
    a_session_terminal_outlives_its_connection,
    background_processes,
    background_processes_survive_the_daemon,
];

fn id(name: &str) -> SessionId {
    SessionId::parse(name).unwrap()
}

async fn say(sandbox: &Sandbox, argv: &[&str]) -> Done {
    exec(sandbox, ExecSpec { argv: words(argv), session: Some(id("a.b")), ..ExecSpec::default() }).await.unwrap()
}

async fn a_session_keeps_its_state() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    assert_eq!(say(&sandbox, &["pwd"]).await.stdout, "/workspace\n");
    for argv in [
        &["mkdir", "a b"][..],
        &["cd", "a b"],
        &["export", "X=it's \"quoted\" $HOME\nline"],
        &["eval", "f() { echo \"f says $1\"; }"],
        &["unset", "LANG"],
    ] {
        assert_eq!(say(&sandbox, argv).await, Done::default(), "{argv:?}");
    }
    assert_eq!(say(&sandbox, &["pwd"]).await.stdout, "/workspace/a b\n");
    assert_eq!(say(&sandbox, &["printenv", "X"]).await.stdout, "it's \"quoted\" $HOME\nline\n");
    assert_eq!(say(&sandbox, &["f", "yes"]).await.stdout, "f says yes\n");
    assert_eq!(say(&sandbox, &["printenv", "LANG"]).await.code, 1);
    // Variables and directory of one command only.
    let spec = ExecSpec {
        argv: words(&["eval", "echo $X $Y; pwd; export Z=1"]),
        cwd: Some(PathBuf::from("/usr")),
        env: [("X".to_owned(), "x".to_owned()), ("Y".to_owned(), "y".to_owned())].into(),
        session: Some(id("a.b")),
        ..ExecSpec::default()
    };
    assert_eq!(exec(&sandbox, spec).await.unwrap().stdout, "x y\n/usr\n");
    assert_eq!(
        say(&sandbox, &["eval", "pwd; echo ${X:0:4} ${Y-unset} $Z"]).await.stdout,
        "/workspace/a b\nit's unset 1\n"
    );
    // Other sessions, and commands without one, have their own.
    assert_eq!(run(&sandbox, &["pwd"]).await.stdout, "/workspace\n");
    let other = ExecSpec { argv: words(&["pwd"]), session: Some(id("other")), ..ExecSpec::default() };
    assert_eq!(exec(&sandbox, other).await.unwrap().stdout, "/workspace\n");
    sandbox.destroy().await.unwrap();
}

async fn a_session_survives_its_commands() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    say(&sandbox, &["export", "A=1"]).await;
    assert_eq!(say(&sandbox, &["exit", "9"]).await.code, 9);
    assert_eq!(say(&sandbox, &["no-such"]).await.code, 127);
    assert_eq!(say(&sandbox, &["eval", "export B=2; exit 3"]).await.code, 3);
    assert_eq!(say(&sandbox, &["eval", "export A=lost; kill -9 $$"]).await.code, 137);
    let timeout = Some(Duration::from_millis(300));
    let spec = ExecSpec { argv: words(&["sleep", "100"]), timeout, session: Some(id("a.b")), ..ExecSpec::default() };
    let done = exec(&sandbox, spec).await.unwrap();
    assert_eq!((done.code, done.stderr.as_str()), (124, "Command timed out after 300ms\n"));
    assert_eq!(say(&sandbox, &["eval", "echo $A $B"]).await.stdout, "1 2\n");
    // A directory that is gone is no end either.
    say(&sandbox, &["eval", "mkdir d; cd d; rmdir ../d"]).await;
    assert_eq!(say(&sandbox, &["pwd"]).await.stdout, "/workspace\n");
    sandbox.destroy().await.unwrap();
}

async fn commands_of_a_session_take_turns() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let mut all = Vec::new();
    for index in 0..8 {
        let line = format!("n=$(cat n 2>/dev/null || echo 0); sleep 0.05; echo $((n + 1)) >n; echo {index} >>order");
        let spec = ExecSpec { argv: words(&["eval", &line]), session: Some(id("q")), ..ExecSpec::default() };
        all.push(sandbox.exec(spec).await.unwrap());
    }
    for events in all {
        assert_eq!(collect(events).await.unwrap().code, 0);
    }
    let done = shell(&sandbox, "cat n; tr -d '\n' <order").await;
    assert_eq!(done.stdout, "8\n01234567");
    sandbox.destroy().await.unwrap();
}

async fn sessions_are_made_and_deleted() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let spec = SessionSpec {
        id: Some(id("mine")),
        cwd: Some(PathBuf::from("/tmp")),
        env: [("A".to_owned(), "a".to_owned())].into(),
    };
    assert_eq!(sandbox.create_session(spec.clone()).await.unwrap(), id("mine"));
    let error = sandbox.create_session(spec.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "Session 'mine' already exists");
    let command =
        |line: &str| ExecSpec { argv: words(&["eval", line]), session: Some(id("mine")), ..ExecSpec::default() };
    assert_eq!(exec(&sandbox, command("echo $A $PWD; export B=b")).await.unwrap().stdout, "a /tmp\n");
    let mut running = sandbox.exec(command("echo in; sleep 1000")).await.unwrap();
    assert_eq!(running.recv().await, Some(ExecEvent::Stdout(Bytes::from_static(b"in\n"))));
    let waiting = sandbox.exec(command("echo never")).await.unwrap();
    sandbox.delete_session(&id("mine")).await.unwrap();
    assert_eq!(collect(waiting).await, Err("Session 'mine' not found".to_owned()));
    assert!(collect(running).await.is_ok_and(|done| done.code == 137));
    let error = sandbox.delete_session(&id("mine")).await.unwrap_err();
    assert_eq!(error.to_string(), "Session 'mine' not found");
    assert_eq!(exec(&sandbox, command("echo -$A-$B- $PWD")).await.unwrap().stdout, "--- /workspace\n");
    let made = sandbox.create_session(SessionSpec::default()).await.unwrap();
    assert_ne!(made, sandbox.create_session(SessionSpec::default()).await.unwrap());
    sandbox.destroy().await.unwrap();
}

async fn type_in(pty: &Pty, text: &str) {
    pty.input.send(PtyInput::Bytes(Bytes::copy_from_slice(text.as_bytes()))).await.unwrap();
}

/// Reads until the terminal has shown `text`.
async fn until(pty: &mut Pty, text: &str) -> String {
    let shown = shows(pty, text, Duration::from_secs(20)).await;
    shown.unwrap_or_else(|shown| panic!("no {text:?} in {shown:?}"))
}

/// The same, for so long that nothing comes.
async fn shows(pty: &mut Pty, text: &str, patience: Duration) -> Result<String, String> {
    let mut shown = String::new();
    while !shown.contains(text) {
        match tokio::time::timeout(patience, pty.output.recv()).await {
            Err(_) => return Err(shown),
            Ok(None) => panic!("the end after {shown:?}"),
            Ok(Some(PtyEvent::Output(bytes))) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(Some(PtyEvent::Ready)) => {}
            Ok(Some(PtyEvent::Exit { code, .. })) => panic!("exit {code}: {shown}"),
        }
    }
    Ok(shown)
}

async fn exit(pty: &mut Pty) -> PtyEvent {
    loop {
        if let event @ PtyEvent::Exit { .. } = pty.output.recv().await.unwrap() {
            return event;
        }
    }
}

async fn a_terminal() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let spec = PtySpec { cols: 91, rows: 33, shell: None, session: None };
    let mut pty = sandbox.open_pty(spec.clone()).await.unwrap();
    assert_eq!(pty.output.recv().await, Some(PtyEvent::Ready));
    type_in(&pty, "stty size; tty; echo $((6*7)) $PWD\n").await;
    let shown = until(&mut pty, "42 /workspace").await;
    assert!(shown.contains("33 91") && shown.contains("/dev/pts/0"), "{shown}");
    if !shown.rsplit("42 /workspace").next().is_some_and(|rest| rest.contains("# ")) {
        // Before the shell's line editor asks it puts back the size that it has found.
        until(&mut pty, "# ").await;
    }
    pty.input.send(PtyInput::Resize { cols: 40, rows: 10 }).await.unwrap();
    type_in(&pty, "stty size\n").await;
    until(&mut pty, "10 40").await;
    // ^C ends the command and not the shell: there is job control.
    type_in(&pty, "echo be''gun; sleep 1000\n").await;
    until(&mut pty, "begun").await;
    // While the shell is still about to start it, ^C is for nobody in particular.
    let line = "until pgrep -fx 'sleep 1000' >/dev/null; do :; done";
    assert_eq!(shell(&sandbox, line).await.code, 0);
    let mut tries = 0;
    loop {
        type_in(&pty, "\u{3}").await;
        type_in(&pty, "echo co=$?\n").await;
        match shows(&mut pty, "co=130", Duration::from_secs(5)).await {
            Ok(_) => break,
            // While the shell has not begun to wait for it, either.
            Err(shown) if tries == 3 => panic!("^C does not end it: {shown:?}"),
            Err(_) => tries += 1,
        }
    }
    type_in(&pty, "exit 5\n").await;
    assert_eq!(exit(&mut pty).await, PtyEvent::Exit { code: 5, signal: None });

    let mut pty = sandbox.open_pty(spec.clone()).await.unwrap();
    type_in(&pty, "kill -9 $$\n").await;
    assert_eq!(exit(&mut pty).await, PtyEvent::Exit { code: 137, signal: Some("SIGKILL".to_owned()) });

    let mut pty = sandbox.open_pty(spec.clone()).await.unwrap();
    type_in(&pty, "echo be''gun; sleep 1000\n").await;
    until(&mut pty, "begun").await;
    drop(pty);
    assert_eq!(
        shell(&sandbox, "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.1; done; exit 1")
            .await
            .code,
        0
    );

    let refused = sandbox.open_pty(PtySpec { shell: Some("no-such-shell".to_owned()), ..spec }).await;
    assert!(matches!(refused, Err(SandboxError::Exec { .. })), "{refused:?}");
    sandbox.destroy().await.unwrap();
}

async fn a_session_terminal_outlives_its_connection() {
    let world = World::new();
    let session = Some(id("t"));
    let spec = PtySpec { cols: 80, rows: 24, shell: None, session: session.clone() };
    let (earlier, before) = (world.runtime.clone(), spec.clone());
    earlier_daemon(async move {
        let sandbox = earlier.create(new_id(), SandboxSpec::default()).await.unwrap();
        let argv = words(&["eval", "cd /tmp; export A=here"]);
        exec(&sandbox, ExecSpec { argv, session, ..ExecSpec::default() }).await.unwrap();
        let mut pty = sandbox.open_pty(before.clone()).await.unwrap();
        type_in(&pty, "echo $A in $PWD; B=kept\n").await;
        until(&mut pty, "here in /tmp").await;
        drop(pty);
        let mut pty = sandbox.open_pty(before).await.unwrap();
        let Some(PtyEvent::Output(recent)) = pty.output.recv().await else { panic!("nothing is replayed") };
        assert!(String::from_utf8_lossy(&recent).contains("here in /tmp"));
        assert_eq!(pty.output.recv().await, Some(PtyEvent::Ready));
        type_in(&pty, "echo $B''-\n").await;
        until(&mut pty, "kept-").await;
    })
    .await;
    let sandbox = runtime(world.directory.path()).recover().await.unwrap().living.pop().unwrap();
    let mut pty = sandbox.open_pty(spec).await.unwrap();
    type_in(&pty, "echo $B''+\n").await;
    until(&mut pty, "kept+").await;
    sandbox.delete_session(&id("t")).await.unwrap();
    assert!(matches!(exit(&mut pty).await, PtyEvent::Exit { code: 137, .. }));
    sandbox.destroy().await.unwrap();
}

async fn background_processes() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let line = "echo one; echo two >&2; read -t 30 <>/tmp/fifo; echo three; exit 4";
    shell(&sandbox, "mkfifo /tmp/fifo").await;
    let spec = ProcessSpec { id: Some("p1".to_owned()), argv: words(&["bash", "-c", line]), ..ProcessSpec::default() };
    let info = sandbox.start_process(spec.clone()).await.unwrap();
    assert_eq!((info.id.as_str(), info.state, info.ended_ms), ("p1", ProcessState::Running, None));
    assert!(matches!(sandbox.start_process(spec).await, Err(SandboxError::Exec { .. })));
    let mut follow = sandbox.follow_process("p1").await.unwrap();
    let mut seen = (Vec::new(), Vec::new());
    while seen.0 != b"one\n" || seen.1 != b"two\n" {
        match follow.recv().await.unwrap() {
            ExecEvent::Stdout(bytes) => seen.0.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => seen.1.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    shell(&sandbox, "echo go >/tmp/fifo").await;
    let done = collect(follow).await.unwrap();
    assert_eq!((done.stdout.as_str(), done.code), ("three\n", 4));
    let logs = sandbox.process_logs("p1").await.unwrap();
    assert_eq!((&logs.stdout[..], &logs.stderr[..]), (&b"one\nthree\n"[..], &b"two\n"[..]));
    let again = collect(sandbox.follow_process("p1").await.unwrap()).await.unwrap();
    assert_eq!((again.stdout.as_str(), again.code), ("one\nthree\n", 4));
    let [p1] = &sandbox.list_processes().await[..] else { panic!("one process") };
    assert!(p1.state == ProcessState::Exited(4) && p1.ended_ms >= Some(p1.started_ms));

    let spec = ProcessSpec { argv: words(&["bash", "-c", "sleep 1000 & wait"]), ..ProcessSpec::default() };
    let p2 = sandbox.start_process(spec).await.unwrap();
    sandbox.kill_process(&p2.id, 15).await.unwrap();
    let done = collect(sandbox.follow_process(&p2.id).await.unwrap()).await.unwrap();
    assert_eq!(done.code, 143);
    let spec = ProcessSpec {
        argv: words(&["sleep", "1000"]),
        timeout: Some(Duration::from_millis(200)),
        ..ProcessSpec::default()
    };
    let p3 = sandbox.start_process(spec).await.unwrap();
    assert_eq!(collect(sandbox.follow_process(&p3.id).await.unwrap()).await.unwrap().code, 124);
    // What is kept is bounded.
    let spec =
        ProcessSpec { argv: words(&["bash", "-c", "yes | head -c 9000000; echo last"]), ..ProcessSpec::default() };
    let p4 = sandbox.start_process(spec).await.unwrap();
    collect(sandbox.follow_process(&p4.id).await.unwrap()).await.unwrap();
    let logs = sandbox.process_logs(&p4.id).await.unwrap();
    assert!(logs.stdout.len() <= 2 << 20 && logs.stdout.ends_with(b"last\n"), "{}", logs.stdout.len());
    assert!(matches!(sandbox.kill_process("none", 9).await, Err(SandboxError::NoProcess { .. })));
    sandbox.destroy().await.unwrap();
}

async fn background_processes_survive_the_daemon() {
    let world = World::new();
    let earlier = world.runtime.clone();
    earlier_daemon(async move {
        let sandbox = earlier.create(new_id(), SandboxSpec::default()).await.unwrap();
        let line = "for i in $(seq 3000); do echo line $i; [ -e /workspace/stop ] && exit 6; sleep 0.02; done";
        for (id, line) in [("p", line), ("q", "sleep 0.3; echo q; exit 3")] {
            let argv = words(&["bash", "-c", line]);
            let spec = ProcessSpec { id: Some(id.to_owned()), argv, ..ProcessSpec::default() };
            sandbox.start_process(spec).await.unwrap();
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let sandbox = runtime(world.directory.path()).recover().await.unwrap().living.pop().unwrap();
    let states: Vec<_> = sandbox.list_processes().await.into_iter().map(|info| (info.id, info.pid > 1)).collect();
    assert_eq!(states, [("p".to_owned(), true), ("q".to_owned(), true)]);
    let done = collect(sandbox.follow_process("q").await.unwrap()).await.unwrap();
    assert_eq!((done.stdout.as_str(), done.code), ("q\n", 3));
    shell(&sandbox, "touch stop").await;
    let done = collect(sandbox.follow_process("p").await.unwrap()).await.unwrap();
    let lines: Vec<_> = done.stdout.lines().collect();
    assert!(done.code == 6 && lines[0] == "line 1", "{done:?}");
    assert!(lines.iter().enumerate().all(|(index, line)| *line == format!("line {}", index + 1)), "no line is lost");
    sandbox.destroy().await.unwrap();
}
