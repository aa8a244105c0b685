//! What a client sees on the connection itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_store::memory::MemoryStore;

/// A client that awaits `100 Continue` keeps its body when it is refused: what it sends next must not be taken for it.
#[test]
fn a_refused_upload_whose_body_was_not_sent_ends_its_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let options = ServerOptions::new(KeyPair::new("id", "secret")).bucket("bucket", Arc::new(MemoryStore::new()));
    let server = runtime.block_on(Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options)).unwrap();
    let mut client = TcpStream::connect(server.local_addr()).unwrap();
    client
        .write_all(b"PUT /bucket/a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    runtime.block_on(server.shutdown());
}
