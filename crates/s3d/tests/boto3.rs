//! boto3 works with the server and finds nothing wrong, over a directory and over memory.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_store::Store;
use sandpail_store::dir::DirStore;
use sandpail_store::memory::MemoryStore;

fn run_checks(bucket: Arc<dyn Store>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    let has_boto3 = Command::new(&python).args(["-c", "import boto3"]).output().is_ok_and(|run| run.status.success());
    assert!(has_boto3, "{} with boto3 is needed; run: make setup", python.display());

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let options = ServerOptions::new(KeyPair::new("boto", "botosecret"))
        .bucket("bucket", bucket)
        .bucket("other", Arc::new(MemoryStore::new()));
    let server = runtime.block_on(Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options)).unwrap();
    let run = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boto3_checks.py"))
        .env("S3_ENDPOINT", server.endpoint())
        .env("S3_BUCKET", "bucket")
        .env("S3_OTHER_BUCKET", "other")
        .env("S3_ACCESS_KEY", "boto")
        .env("S3_SECRET_KEY", "botosecret")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    println!("{told}");
    assert!(run.status.success(), "boto3 found faults:\n{told}");
    assert!(server.log().counts()["PutObject"] > 100);
    runtime.block_on(server.shutdown());
}

#[test]
fn boto3_finds_nothing_wrong_with_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    run_checks(Arc::new(DirStore::create(directory.path().join("bucket")).unwrap()));
}

#[test]
fn boto3_finds_nothing_wrong_with_memory() {
    run_checks(Arc::new(MemoryStore::new()));
}
