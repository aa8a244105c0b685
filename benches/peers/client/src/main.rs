//! Our own S3 client without a mount: what the cold rows cost when no kernel, no tree and no program stand in between.
//!
//! Asks for ranges as a mount would, throws the bytes away, and prints one line of JSON: seconds, bytes. Keys come from
//! `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, Subcommand};
use futures_util::{StreamExt, TryStreamExt, stream};
use sandpail_store::http::{HttpStore, environment};
use sandpail_store::{ObjectKey, Store};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    bucket: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Fetches whole objects, all at once, each in parts
    Stream {
        #[arg(long, default_value_t = 8 << 20)]
        part: u64,
        /// Parts of one object under way
        #[arg(long, default_value_t = 4)]
        ahead: usize,
        keys: Vec<String>,
    },
    /// Waits for the first byte of an object
    First { key: String },
    /// Fetches blocks at random places of an object
    Random {
        #[arg(long)]
        block: u64,
        #[arg(long)]
        at_once: usize,
        #[arg(long)]
        count: u64,
        key: String,
    },
    /// Fetches objects named PREFIX0, PREFIX1, …
    Small {
        #[arg(long)]
        at_once: usize,
        #[arg(long)]
        count: u64,
        prefix: String,
    },
}

async fn fetch(store: &HttpStore, key: &ObjectKey, range: Range<u64>) -> Outcome<u64> {
    let mut body = store.get(key, range, None).await?.body;
    let mut len = 0;
    while let Some(chunk) = body.try_next().await? {
        len += chunk.len() as u64;
    }
    Ok(len)
}

/// All of `ranges`, so many at once, in order of their beginning.
async fn fetch_all(
    store: Arc<HttpStore>,
    wanted: impl Iterator<Item = (ObjectKey, Range<u64>)>,
    at_once: usize,
) -> Outcome<u64> {
    stream::iter(wanted)
        .map(|(key, range)| {
            let store = Arc::clone(&store);
            // A task each, so that they use all cores.
            async move { tokio::spawn(async move { fetch(&store, &key, range).await }).await? }
        })
        .buffer_unordered(at_once)
        .try_fold(0, |total, len| async move { Ok(total + len) })
        .await
}

async fn run(store: Arc<HttpStore>, what: What) -> Outcome<u64> {
    match what {
        What::Stream { part, ahead, keys } => {
            let whole = keys.into_iter().map(|key| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let key = ObjectKey::new(&key)?;
                    let len = store.head(&key).await?.size;
                    let parts = (0..len.div_ceil(part)).map(|n| (key.clone(), n * part..((n + 1) * part).min(len)));
                    fetch_all(store, parts.collect::<Vec<_>>().into_iter(), ahead).await
                })
            });
            let mut total = 0;
            for each in whole.collect::<Vec<_>>() {
                total += each.await??;
            }
            Ok(total)
        }
        What::First { key } => {
            let mut body = store.get(&ObjectKey::new(&key)?, 0..1 << 20, None).await?.body;
            Ok(body.try_next().await?.map_or(0, |chunk| chunk.len() as u64))
        }
        What::Random { block, at_once, count, key } => {
            let key = ObjectKey::new(&key)?;
            let places = store.head(&key).await?.size / block;
            let mut state = 1u64;
            let wanted = (0..count).map(move |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) % places * block;
                (key.clone(), at..at + block)
            });
            fetch_all(store, wanted, at_once).await
        }
        What::Small { at_once, count, prefix } => {
            let keys: Vec<_> = (0..count).map(|n| ObjectKey::new(format!("{prefix}{n}"))).collect::<Result<_, _>>()?;
            fetch_all(store, keys.into_iter().map(|key| (key, 0..1 << 20)), at_once).await
        }
    }
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let credentials = environment(|name| std::env::var(name).ok()).ok_or("no keys in the environment")?;
    let store = HttpStore::builder(arguments.endpoint.parse()?, &arguments.bucket)
        .credentials(Arc::new(credentials))
        .region("us-east-1")
        .path_style(true);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let start = Instant::now();
    let bytes = runtime.block_on(async { run(Arc::new(store.build()?), arguments.what).await })?;
    println!("{{\"seconds\": {}, \"bytes\": {bytes}}}", start.elapsed().as_secs_f64());
    Ok(())
}
