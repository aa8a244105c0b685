//! Sandboxes by name: made when they are used, limited, warm, gone.

use sandpail_daemon::{BucketListOptions, BucketPutOptions, DaemonError};

use crate::world::{World, id, until};

crate::tests![
    a_name_is_enough,
    a_full_house,
    warm_sandboxes_are_taken_and_replaced,
    one_that_dies_is_started_afresh,
    objects_of_bindings,
];

async fn a_name_is_enough() {
    let world = World::new().await;
    let one = id("one");
    assert!(!world.daemon.is_running(&one).await);
    assert!(world.daemon.list_sandboxes().await.is_empty());
    world.run(&one, "echo x > /tmp/x").await;
    assert!(world.daemon.is_running(&one).await);
    // Many at once make one sandbox.
    let two = id("two");
    let calls = (0..8).map(|_| world.daemon.sandbox(&two));
    let pids: Vec<i32> =
        futures_util::future::join_all(calls).await.into_iter().map(|made| made.unwrap().pid()).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    world.daemon.destroy_sandbox(&one).await.unwrap();
    world.daemon.destroy_sandbox(&one).await.unwrap();
    assert!(!world.daemon.is_running(&one).await);
    assert_eq!(world.exec(&one, "test -e /tmp/x").await.code, 1);
    world.end().await;
}

async fn a_full_house() {
    let world = World::with(|config| config.max_sandboxes = Some(2)).await;
    world.daemon.create_sandbox().await.unwrap();
    let second = world.daemon.create_sandbox().await.unwrap();
    match world.daemon.create_sandbox().await {
        Err(DaemonError::Capacity(text)) => assert!(text.contains("instance limit reached"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(world.daemon.sandbox(&id("named")).await, Err(DaemonError::Capacity(_))));
    world.daemon.destroy_sandbox(&second).await.unwrap();
    world.run(&id("named"), "true").await;
    world.end().await;
}

async fn warm_sandboxes_are_taken_and_replaced() {
    let world = World::with(|config| {
        config.warm_target = 2;
        config.max_sandboxes = Some(4);
    })
    .await;
    world.daemon.prime_pool().await.unwrap();
    let stats = world.daemon.pool_stats().await;
    assert_eq!((stats.warm, stats.assigned, stats.warm_target, stats.max_instances), (2, 0, 2, Some(4)));
    assert!(world.daemon.list_sandboxes().await.is_empty());
    let taken = world.daemon.create_sandbox().await.unwrap();
    assert_eq!(taken.as_str().len(), 26);
    until("the pool is full again", || async { world.daemon.pool_stats().await.warm == 2 }).await;
    assert_eq!(world.daemon.pool_stats().await.assigned, 1);
    world.daemon.empty_pool().await.unwrap();
    let stats = world.daemon.pool_stats().await;
    assert_eq!((stats.warm, stats.assigned), (0, 1));
    assert!(world.daemon.is_running(&taken).await);
    world.end().await;
}

async fn one_that_dies_is_started_afresh() {
    let world = World::new().await;
    let one = id("one");
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    world.run(&one, "echo kept > /data/kept; echo gone > /tmp/gone").await;
    let mut events = world.daemon.events();
    let pid = world.daemon.sandbox(&one).await.unwrap().pid();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    while events.recv().await.unwrap().kind != "sandbox.ended" {}
    assert!(world.daemon.list_mounts(&one).await.is_empty());
    assert!(world.daemon.is_running(&one).await);
    assert_eq!(world.exec(&one, "test -e /tmp/gone").await.code, 1);
    world.mount(&one, "MY_BUCKET", "/data").await.unwrap();
    assert_eq!(world.run(&one, "cat /data/kept").await, "kept\n");
    world.end().await;
}

async fn objects_of_bindings() {
    let world = World::new().await;
    // Three parts, the last one shorter, in chunks that do not fit them.
    let chunk = bytes::Bytes::from(vec![7; 3 << 20]);
    let chunks: Vec<Result<bytes::Bytes, DaemonError>> = (0..12).map(|_| Ok(chunk.clone())).collect();
    let options = BucketPutOptions {
        content_type: Some("text/x".to_owned()),
        custom_metadata: [("a".to_owned(), "b".to_owned())].into(),
    };
    let body = Box::pin(futures_util::stream::iter(chunks));
    let put = world.daemon.put_object("MY_BUCKET", "a/large", body, options).await.unwrap();
    assert_eq!(put.size, 36 << 20);
    let head = world.daemon.head_object("MY_BUCKET", "a/large").await.unwrap();
    assert_eq!((head.size, head.etag, head.content_type.as_deref()), (36 << 20, put.etag, Some("text/x")));
    assert_eq!(head.custom_metadata["a"], "b");
    world.put("MY_BUCKET", "b", "0123456789").await;
    let (_, body) = world.daemon.get_object("MY_BUCKET", "b", Some((2, Some(3)))).await.unwrap();
    let read: Vec<_> = futures_util::StreamExt::collect::<Vec<_>>(body).await;
    assert_eq!(read.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat(), b"234");
    let delimiter = Some("/".to_owned());
    let page = world
        .daemon
        .list_objects("MY_BUCKET", BucketListOptions { delimiter, ..BucketListOptions::default() })
        .await
        .unwrap();
    assert_eq!((page.delimited_prefixes, page.objects.len()), (vec!["a/".to_owned()], 1));
    world.daemon.delete_objects("MY_BUCKET", &["b".to_owned(), "not-there".to_owned()]).await.unwrap();
    assert!(matches!(world.get("MY_BUCKET", "b").await, Err(DaemonError::NoObject { .. })));
    assert!(matches!(world.get("NOPE", "b").await, Err(DaemonError::NoBinding { .. })));
    // A body that breaks off leaves no object.
    let broken = (0..8).map(|_| Ok(chunk.clone())).chain([Err(DaemonError::Stopping)]);
    let broken: Vec<Result<bytes::Bytes, DaemonError>> = broken.collect();
    let body = Box::pin(futures_util::stream::iter(broken));
    assert!(world.daemon.put_object("MY_BUCKET", "broken", body, BucketPutOptions::default()).await.is_err());
    assert_eq!(world.keys("MY_BUCKET").await, ["a/large"]);
    world.end().await;
}
