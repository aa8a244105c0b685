//! Serves a bucket directory as S3, for trying things out:
//! `cargo run -p sandpail-s3d --example serve -- DIR 127.0.0.1:9000 [BUCKET]` with the key `test` / `testtest`.

use std::sync::Arc;

use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_store::dir::DirStore;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(address)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: serve DIR ADDRESS:PORT [BUCKET]");
    };
    let bucket = arguments.next().unwrap_or_else(|| "bucket".into());
    let store = DirStore::create(directory)?;
    let spool = store.temp_directory().to_owned();
    let options = ServerOptions::new(KeyPair::new("test", "testtest"))
        .spool_directory(spool)
        .bucket(bucket.clone(), Arc::new(store));
    let server = Server::bind(address.parse()?, options).await?;
    println!("{}/{bucket}, access key test, secret key testtest", server.endpoint());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
