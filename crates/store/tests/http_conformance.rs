//! The rules that every store follows, over HTTP: against the directory server, and against SeaweedFS where it is
//! installed (`WEED` names the program).

use std::sync::Arc;
use std::time::Duration;

use sandpail_s3::ChecksumKind;
use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_spec::{Credentials, Provider, SecretKey};
use sandpail_store::dir::DirStore;
use sandpail_store::http::{HttpStore, HttpStoreBuilder, StaticCredentials};
use sandpail_store::{Capabilities, Store, conformance};

fn key() -> Arc<StaticCredentials> {
    Arc::new(StaticCredentials::new(Credentials {
        access_key_id: "test".into(),
        secret_access_key: SecretKey::new("testtest"),
        session_token: None,
    }))
}

async fn over_s3d(adjust: impl FnOnce(HttpStoreBuilder) -> HttpStoreBuilder) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    let options = ServerOptions::new(KeyPair::new("test", "testtest"))
        .spool_directory(store.temp_directory())
        .bucket("bucket", Arc::new(store));
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let builder = HttpStore::builder(server.endpoint().parse().unwrap(), "bucket").credentials(key());
    let store = adjust(builder).build().unwrap();
    store.check_bucket().await.unwrap();
    conformance::run(&store, "conformance/").await;
    assert!(store.counters().total() > 100);
    assert_eq!(store.counters().retries, 0, "{:?}", store.counters());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_server_with_md5() {
    over_s3d(|builder| builder.capabilities(Capabilities::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_server_as_amazon() {
    over_s3d(|builder| builder.provider(Provider::S3).checksum(ChecksumKind::Crc64Nvme)).await;
}

/// Its keys are the paths of a file system: `c` and `c/d` are not both objects, and `c/` shows beside `c/d`.
const SEAWEED_CANNOT: [&str; 6] = [
    "odd_keys_come_back",
    "a_missing_object_is_not_found",
    "listings_are_ordered",
    "listings_are_rolled_up",
    "a_key_beside_its_directory_is_listed",
    "long_segments_are_listed_in_order",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SeaweedFS: WEED=/path/to/weed"]
async fn seaweedfs() {
    let Ok(weed) = std::env::var("WEED") else { panic!("WEED names no program") };
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("s3.json");
    let identities = r#"{"identities":[{"name":"test","credentials":[{"accessKey":"test","secretKey":"testtest"}],"actions":["Admin","Read","Write","List","Tagging"]}]}"#;
    std::fs::write(&config, identities).unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // Ports of this process's own, below those that the kernel hands out.
    let port = 20_000 + u16::try_from(std::process::id() % 5_000).unwrap();
    let mut child = tokio::process::Command::new(weed)
        .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-volume.max=20"])
        .arg(format!("-dir={}", data.display()))
        .arg(format!("-s3.config={}", config.display()))
        .arg(format!("-master.port={port}"))
        .arg(format!("-volume.port={}", port + 1))
        .arg(format!("-filer.port={}", port + 2))
        .arg(format!("-s3.port={}", port + 3))
        .arg("-s3.iam=false")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let endpoint = format!("http://127.0.0.1:{}", port + 3).parse().unwrap();
    let store =
        HttpStore::builder(endpoint, "bucket").provider(Provider::SeaweedFs).credentials(key()).build().unwrap();
    let mut tries = 0;
    while let Err(error) = store.create_bucket().await {
        tries += 1;
        assert!(tries < 60, "{error}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    store.check_bucket().await.unwrap();
    conformance::run_except(&store, "conformance/", &SEAWEED_CANNOT).await;
    child.kill().await.unwrap();
}
