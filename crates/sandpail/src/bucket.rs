//! Buckets in a directory of this machine.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_store::dir::DirStore;
use sandpail_store::{ListRequest, Store};

use crate::cli::BucketCommand;

pub(crate) fn run(command: BucketCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match command {
        BucketCommand::Create { dir } => {
            DirStore::create(&dir)?;
            println!("{} is a bucket now; mount it with: sandpail mount dir:{} DIR", dir.display(), dir.display());
            Ok(())
        }
        BucketCommand::List { dir, prefix } => runtime.block_on(list(&dir, prefix)),
        BucketCommand::Serve { dir, listen, name, access_key, secret_key_file } => {
            let name = match name {
                Some(name) => name,
                None => std::path::absolute(&dir)?
                    .file_name()
                    .and_then(|name| name.to_str())
                    .context("the directory has no name; give --name")?
                    .to_owned(),
            };
            sandpail_spec::BucketName::parse_lenient(&name)?;
            let store = DirStore::create(&dir)?;
            let (id, secret, is_new) = match (access_key, secret_key_file) {
                (Some(id), Some(file)) => {
                    let text = std::fs::read_to_string(&file)
                        .with_context(|| format!("cannot read the secret key from {}", file.display()))?;
                    let secret = text.trim().to_owned();
                    anyhow::ensure!(!secret.is_empty(), "{} is empty", file.display());
                    (id, secret, false)
                }
                _ => (random(10)?, random(20)?, true),
            };
            runtime.block_on(serve(store, listen, &name, &id, &secret, is_new))
        }
    }
}

async fn serve(
    store: DirStore,
    listen: std::net::SocketAddr,
    name: &str,
    id: &str,
    secret: &str,
    is_new: bool,
) -> anyhow::Result<()> {
    if !listen.ip().is_loopback() {
        bail!("--listen {listen}: an embedded bucket is served on loopback only, such as 127.0.0.1:9000");
    }
    let options = ServerOptions::new(KeyPair::new(id, secret))
        .spool_directory(store.temp_directory())
        .bucket(name, Arc::new(store));
    let server = Server::bind(listen, options).await.with_context(|| format!("cannot listen on {listen}"))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "# serving bucket {name}; Ctrl-C ends it")?;
    writeln!(out, "export AWS_ENDPOINT_URL_S3={}", server.endpoint())?;
    writeln!(out, "export AWS_REGION=us-east-1")?;
    writeln!(out, "export AWS_ACCESS_KEY_ID={id}")?;
    if is_new {
        writeln!(out, "export AWS_SECRET_ACCESS_KEY={secret}")?;
    }
    writeln!(out, "# then: sandpail mount {name} DIR")?;
    out.flush()?;
    drop(out);
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! { _ = term.recv() => {}, ended = tokio::signal::ctrl_c() => ended? }
    server.shutdown().await;
    Ok(())
}

async fn list(dir: &Path, prefix: String) -> anyhow::Result<()> {
    let store = DirStore::open(dir)?;
    let mut request = ListRequest { prefix, ..ListRequest::default() };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        let page = store.list(&request).await?;
        for object in page.objects {
            writeln!(out, "{:>12}  {}", object.size, object.key)?;
        }
        match page.next {
            Some(next) => request.continuation = Some(next),
            None => return Ok(out.flush()?),
        }
    }
}

/// Random bytes from the kernel, as hexadecimal digits.
fn random(len: usize) -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = vec![0; len];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
