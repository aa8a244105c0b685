//! What is counted: the work of a mount's process, between the kernel and an S3 server.

use std::io::stdin;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use sandpail_fs::adapter::{IdMap, serve_device};
use sandpail_fs::engine::{Engine, EngineOptions, Metadata};
use sandpail_spec::{Credentials, SecretKey};
use sandpail_store::http::{HttpStore, StaticCredentials};
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, collect};
use sandpail_testkit::world::{Access, World};

use crate::kernel::{DATA_LEN, Kernel, ROOT};

/// Threads of a mount that read requests (`adapter::mounting`).
const FUSE_THREADS: usize = 2;
const LARGE_LEN: usize = 128 << 20;
const NAME_COUNT: usize = 3000;
const SMALL_COUNT: usize = 200;
const SMALL_LEN: usize = 4096;

/// One path through the mount: what lies in the bucket before, and what the kernel asks.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    pub(crate) name: &'static str,
    /// What a reader of a failure should know.
    pub(crate) about: &'static str,
    /// Where the mount looks for attributes.
    pub(crate) metadata: &'static str,
    fill: fn(&Bucket) -> Result<()>,
    ask: fn(&mut Kernel) -> Result<()>,
    check: fn(&Bucket) -> Result<()>,
}

pub(crate) const PATHS: &[Path] = &[
    Path {
        name: "read",
        about: "a cold read of a file of 128 MiB, from its start to its end",
        metadata: "posix",
        fill: |bucket| bucket.put("large", large()),
        ask: read,
        check: |_| Ok(()),
    },
    Path {
        name: "names",
        about: "a listing of 3000 names that another tool has stored, then lookup and getattr of each",
        // Else there is a HEAD for each, which would hide what the tree costs; `create` has requests enough.
        metadata: "auto",
        fill: |bucket| (0..NAME_COUNT).try_for_each(|n| bucket.put(&format!("d/{}", name(n)), vec![1; n])),
        ask: names,
        check: |_| Ok(()),
    },
    Path {
        name: "create",
        about: "200 new files of 4 KiB: create, write and close, one PUT each",
        metadata: "posix",
        fill: |bucket| bucket.put("d/old", vec![1]),
        ask: create,
        check: created,
    },
];

fn name(number: usize) -> String {
    format!("file-{number:05}.txt")
}

fn large() -> Vec<u8> {
    // Each page begins with its number, so that one from elsewhere is seen.
    let mut bytes = vec![7; LARGE_LEN];
    bytes.chunks_mut(4096).zip(0u64..).for_each(|(page, number)| page[..8].copy_from_slice(&number.to_ne_bytes()));
    bytes
}

fn read(kernel: &mut Kernel) -> Result<()> {
    let node = kernel.lookup(ROOT, "large")?.context("no large file")?;
    let (file, expected) = (kernel.open(node)?, large());
    for (at, expected) in (0..).step_by(DATA_LEN as usize).zip(expected.chunks(DATA_LEN as usize)) {
        ensure!(kernel.read(file, at)? == expected, "other bytes at {at}");
    }
    kernel.release(file)
}

fn names(kernel: &mut Kernel) -> Result<()> {
    let directory = kernel.lookup(ROOT, "d")?.context("no directory")?;
    let listed = kernel.list(directory)?;
    ensure!(listed.len() == NAME_COUNT, "{} names", listed.len());
    let with_attributes = listed.iter().filter(|(_, node)| node.is_some()).count();
    // The first ones are asked about, to know what kind of directory it is.
    ensure!(with_attributes > NAME_COUNT / 2, "only {with_attributes} names came with their attributes");
    for number in 0..NAME_COUNT {
        let node = kernel.lookup(directory, &name(number))?.context("a name is missing")?;
        let size = kernel.getattr(node)?;
        ensure!(size == number as u64, "file {number} has {size} bytes");
    }
    Ok(())
}

fn small(number: usize) -> Vec<u8> {
    name(number).bytes().cycle().take(SMALL_LEN).collect()
}

fn create(kernel: &mut Kernel) -> Result<()> {
    let directory = kernel.lookup(ROOT, "d")?.context("no directory")?;
    for number in 0..SMALL_COUNT {
        // The kernel looks before it makes.
        ensure!(kernel.lookup(directory, &name(number))?.is_none(), "file {number} is there already");
        let file = kernel.create(directory, &name(number))?;
        kernel.write(file, 0, &small(number))?;
        kernel.flush(file)?;
        kernel.release(file)?;
    }
    Ok(())
}

fn created(bucket: &Bucket) -> Result<()> {
    (0..SMALL_COUNT).try_for_each(|number| {
        let stored = bucket.get(&format!("d/{}", name(number)))?;
        ensure!(stored == small(number), "file {number} was not stored as it was written");
        Ok(())
    })
}

/// A bucket served by this process, which is not counted.
pub(crate) struct Bucket {
    world: World,
    runtime: tokio::runtime::Runtime,
}

impl Bucket {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { world: World::memory()?, runtime })
    }

    pub(crate) fn access(&self) -> &Access {
        self.world.access()
    }

    fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let (key, attributes) = (ObjectKey::new(key)?, ObjectAttributes::default());
        let put = self.world.store().put(&key, Bytes::from(bytes).into(), &attributes, &Condition::Always);
        self.runtime.block_on(put)?;
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Bytes> {
        let (key, store) = (ObjectKey::new(key)?, self.world.store());
        self.runtime.block_on(async {
            let size = store.head(&key).await?.size;
            Ok(collect(store.get(&key, 0..size, None).await?, LARGE_LEN).await?)
        })
    }
}

impl Path {
    pub(crate) fn fill(&self, bucket: &Bucket) -> Result<()> {
        (self.fill)(bucket)
    }

    /// Uses the mount as the kernel does for a program.
    pub(crate) fn go(&self, mut kernel: Kernel, bucket: &Bucket) -> Result<()> {
        kernel.hello()?;
        (self.ask)(&mut kernel)?;
        kernel.end(FUSE_THREADS)?;
        (self.check)(bucket)
    }
}

/// The process that is counted, all of it: a mount as its worker makes it, with its device as standard input.
pub(crate) fn mount(access: &Access, directory: &std::path::Path, metadata: &str) -> Result<()> {
    // A real worker's data threads are two. With one that runs it all, it is the same from run to run.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = Credentials {
        access_key_id: access.key_id.clone(),
        secret_access_key: SecretKey::new(access.secret.clone()),
        session_token: None,
    };
    let store = HttpStore::builder(access.endpoint.parse()?, &access.bucket)
        .credentials(Arc::new(StaticCredentials::new(key)))
        .build()?;
    let mut options = EngineOptions::new(directory.join("staging"));
    options.neighbours = Some(directory.join("neighbours"));
    options.survives = true;
    options.metadata = if metadata == "auto" { Metadata::Auto } else { Metadata::Posix };
    // Nothing is asked again for having been slow.
    options.metadata_ttl = Duration::from_secs(3600);
    options.op_timeout = None;
    let engine = Engine::new(Arc::new(store), options, runtime.handle().clone())?;
    let device = stdin().as_fd().try_clone_to_owned()?;
    let served = serve_device(engine, device, IdMap::SAME)?;
    let ended = runtime.spawn_blocking(move || served.wait());
    runtime.block_on(ended).context("the mount's thread")??;
    Ok(())
}
