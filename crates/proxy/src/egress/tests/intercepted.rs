//! What is served as S3.

use hickory_proto::rr::RecordType;
use sandpail_spec::KeyPrefix;
use tokio::io::AsyncWriteExt;

use super::world::{World, say};
use crate::nowhere::Nowhere;
use crate::{Access, OpenRoute, RouteSpec};

fn mount(world: &World, endpoint: &str) -> OpenRoute {
    let spec = RouteSpec {
        id: "m".to_owned(),
        binding: None,
        bucket: "b".to_owned(),
        prefix: KeyPrefix::parse("/").unwrap(),
        access: Access::ReadOnly,
        endpoint: Some(endpoint.parse().unwrap()),
        allow_unsigned: false,
    };
    world.guest.open(spec, std::sync::Arc::new(Nowhere))
}

#[tokio::test]
async fn internal_names_without_any_internet() {
    let world = World::new("{}");
    for name in ["s3-credential-proxy.internal", "m1.s3-credential-proxy.internal", "r2.internal", "b.s3.internal"] {
        for port in [80, 443, 8080] {
            let mut plain = world.connect_by_name(name, port).await;
            let expected = |is_tls: bool| format!("sandbox {name} {is_tls} {port} GET / HTTP/1.1");
            assert_eq!(say(&mut plain, "GET / HTTP/1.1\r\n\r\n").await, expected(false));
            let stream = world.connect_by_name(name, port).await;
            let mut secret = world.tls(stream, name).await.unwrap();
            assert_eq!(say(&mut secret, "GET / HTTP/1.1\r\n\r\n").await, expected(true));
        }
        // No IPv6, and nothing else either; but the name is there.
        assert_eq!(world.ask_for(name, RecordType::AAAA).await, Ok(None));
        assert_eq!(world.ask_for(name, RecordType::HTTPS).await, Ok(None));
    }
    assert!(world.dialled().is_empty());
}

#[tokio::test]
async fn endpoints_of_open_mounts_only() {
    let world = World::new("{}");
    assert!(world.ask("s3.example.com").await.is_err());
    let route = mount(&world, "https://s3.example.com:9000");
    for (name, port) in [("s3.example.com", 9000), ("b.s3.example.com", 443), ("S3.Example.COM", 80)] {
        let host = name.to_ascii_lowercase();
        let stream = world.connect_by_name(name, port).await;
        let mut stream = world.tls(stream, &host).await.unwrap();
        assert_eq!(
            say(&mut stream, "GET / HTTP/1.1\r\n\r\n").await,
            format!("sandbox {host} true {port} GET / HTTP/1.1")
        );
    }
    // Other ports of that host are other services, which the policy does not let.
    let mut other = world.connect_by_name("s3.example.com", 22).await;
    assert_eq!(say(&mut other, "SSH-2.0\r\n").await, "");
    assert_eq!(world.rules(2).await.last(), Some(&"no-internet"));
    let address = world.ask("s3.example.com").await.unwrap().unwrap();
    drop(route);
    assert!(world.ask("s3.example.com").await.is_err());
    let mut late = world.connect(&format!("{address}:9000")).await;
    let refused = say(&mut late, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("no internet"), "{refused}");
    assert!(world.dialled().is_empty());
}

#[tokio::test]
async fn endpoints_that_are_addresses() {
    let world = World::new("{}");
    let _route = mount(&world, "http://10.1.2.3:9000");
    let mut plain = world.connect("10.1.2.3:9000").await;
    assert_eq!(say(&mut plain, "GET / HTTP/1.1\r\n\r\n").await, "sandbox 10.1.2.3 false 9000 GET / HTTP/1.1");
    let stream = world.connect("10.1.2.3:9000").await;
    let mut stream = world.tls(stream, "10.1.2.3").await.unwrap();
    assert_eq!(say(&mut stream, "GET / HTTP/1.1\r\n\r\n").await, "sandbox 10.1.2.3 true 9000 GET / HTTP/1.1");
    let mut other = world.connect("10.1.2.4:9000").await;
    assert!(say(&mut other, "GET / HTTP/1.1\r\n\r\n").await.contains("403"));
}

#[tokio::test]
async fn tls_for_one_name_is_not_taken_on_anothers_connection() {
    let world = World::new("{}");
    let stream = world.connect_by_name("r2.internal", 443).await;
    assert!(world.tls(stream, "s3.internal").await.is_err());
    assert_eq!(world.rules(1).await, ["other-host"]);
    // What begins like TLS and is none.
    let mut stream = world.connect_by_name("r2.internal", 443).await;
    assert_eq!(say(&mut stream, "\u{16}\u{3}\u{1}\0\u{5}abcde").await, "");
}

#[tokio::test]
async fn a_network_that_is_dropped_ends_its_connections() {
    let world = World::new("{}");
    let mut stream = world.connect_by_name("r2.internal", 80).await;
    stream.write_all(b"GET / HT").await.unwrap();
    drop(world.network);
    assert_eq!(super::world::read_all(&mut stream).await, "");
}
