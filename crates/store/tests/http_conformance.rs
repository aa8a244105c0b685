//! The rules that every store follows, over HTTP: against the directory server, and against SeaweedFS.

use std::sync::Arc;

use sandpail_s3::ChecksumKind;
use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_spec::{Credentials, Provider, SecretKey};
use sandpail_store::dir::DirStore;
use sandpail_store::http::{HttpStore, HttpStoreBuilder, StaticCredentials};
use sandpail_store::{Capabilities, Store, conformance};

fn key(id: &str, secret: &str) -> Arc<StaticCredentials> {
    Arc::new(StaticCredentials::new(Credentials {
        access_key_id: id.into(),
        secret_access_key: SecretKey::new(secret),
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
    let builder = HttpStore::builder(server.endpoint().parse().unwrap(), "bucket").credentials(key("test", "testtest"));
    let store = adjust(builder).build().unwrap();
    store.check_bucket("").await.unwrap();
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

/// Its keys are the paths of a file system, and listed in that order: `c` and `c/d` are not both objects, `c/` shows
/// beside `c/d`, `c/d` comes before `c.x`, and an empty directory is listed for a while. Uploads are listed
/// in the order of their ids, with a space for `+`.
const SEAWEED_CANNOT: [&str; 10] = [
    "odd_keys_come_back",
    "a_missing_object_is_not_found",
    "listings_are_ordered",
    "listings_are_rolled_up",
    "a_key_beside_its_directory_is_listed",
    "long_segments_are_listed_in_order",
    "pages_fit_together",
    "a_listing_starts_after_a_key",
    "a_listing_of_nothing_is_empty",
    "uploads_are_listed",
];

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs() {
    let server = sandpail_testkit::world::Seaweed::start().unwrap();
    let access = server.bucket("bucket").unwrap();
    let builder = HttpStore::builder(access.endpoint.parse().unwrap(), &access.bucket);
    let keys = key(&access.key_id, &access.secret);
    let store = builder.provider(Provider::SeaweedFs).credentials(keys).build().unwrap();
    store.check_bucket("").await.unwrap();
    conformance::run_except(&store, "conformance/", &SEAWEED_CANNOT).await;
}
