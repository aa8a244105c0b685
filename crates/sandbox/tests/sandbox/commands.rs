//! Commands: forms, codes, streams, time.

use crate::world::{World, run, shell};

crate::tests![forms_and_codes];

async fn forms_and_codes() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let done = run(&sandbox, &["echo", "a  b", "$HOME", "*", "", "ü\n"]).await;
    assert_eq!((done.stdout.as_str(), done.code), ("a  b $HOME *  ü\n\n", 0));
    let done = shell(&sandbox, "pwd; id -u; echo err >&2; exit 3").await;
    assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.code), ("/workspace\n0\n", "err\n", 3));
    for (argv, code) in [
        (&["exit", "42"][..], 42),
        (&["cd", "/tmp"], 0),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["/etc"], 126),
        (&["bash", "-c", "kill -9 $$"], 137),
        (&["bash", "-c", "kill -TERM $$"], 143),
    ] {
        let done = run(&sandbox, argv).await;
        assert_eq!(done.code, code, "{argv:?}: {done:?}");
    }
    let done = run(&sandbox, &["no-such-program"]).await;
    assert!(done.stderr.contains("not found"), "{}", done.stderr);
    sandbox.destroy().await.unwrap();
    assert!(!sandbox.is_alive());
}
