//! What a policy lets through, and how.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::names;
use super::world::{World, policy, question, read_all, read_answer, say, within};

const INTERNET: &str = r#"{"enableInternet":true}"#;

fn http(text: &str) -> String {
    match text.lines().next() {
        None => String::new(),
        Some(first) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{first}", first.len()),
    }
}

#[tokio::test]
async fn names_are_answered_by_policy() {
    let world = World::new(r#"{"allowedHosts":["*.example.com"],"deniedHosts":["b.example.com"]}"#);
    world.name("a.example.com", &[&["93.184.216.34"]]);
    world.name("b.example.com", &[&["93.184.216.35"]]);
    world.name("example.org", &[&["93.184.216.36"]]);
    world.name("private.example.com", &[&["10.0.0.1"]]);
    world.name("mixed.example.com", &[&["10.0.0.1", "169.254.169.254", "93.184.216.37"]]);
    let given = world.ask("A.example.com").await.unwrap().unwrap();
    assert!(names::is_given(given), "{given}");
    assert_eq!(world.ask("a.example.com").await, Ok(Some(given)));
    assert_eq!(world.ask_for("a.example.com", RecordType::AAAA).await, Ok(None));
    assert!(world.ask("mixed.example.com").await.is_ok());
    for name in ["b.example.com", "example.org", "private.example.com", "no.example.com", "example.com", "localhost"] {
        assert_eq!(world.ask(name).await, Err(ResponseCode::NXDomain), "{name}");
    }
    assert_eq!(world.ask_for("example.org", RecordType::TXT).await, Err(ResponseCode::NXDomain));
    assert_eq!(
        world.rules(5).await,
        ["denied-host", "not-allowed-host", "private-address", "not-allowed-host", "not-allowed-host"]
    );
    // The same over TCP, wherever the question goes.
    let mut stream = world.connect("8.8.8.8:53").await;
    for (name, expected) in [("a.example.com", Ok(Some(given))), ("example.org", Err(ResponseCode::NXDomain))] {
        let question = question(name, RecordType::A);
        stream.write_u16(question.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&question).await.unwrap();
        let mut answer = vec![0; within(stream.read_u16()).await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(read_answer(&answer), expected);
    }
    assert!(world.dialled().is_empty());
}

#[tokio::test]
async fn plain_http_goes_to_its_host() {
    let world = World::new(INTERNET);
    world.name("example.com", &[&["93.184.216.34"]]);
    let heard = world.server("93.184.216.34:80", None, http).await;
    let mut stream = world.connect_by_name("example.com", 80).await;
    let text = "GET /x?y HTTP/1.1\r\nHost: example.com\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nA: b\r\n\r\n\
                GET http://example.com:80/z HTTP/1.1\r\nHost: EXAMPLE.com:80\r\nConnection: close\r\n\r\n";
    let got = say(&mut stream, text).await;
    assert!(got.contains("GET /x?y HTTP/1.1") && got.ends_with("GET /z HTTP/1.1"), "{got}");
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 2);
    assert!(
        heard[0].to_ascii_lowercase().contains("host: example.com\r\na: b") && !heard[0].contains("op"),
        "{heard:?}"
    );
    assert_eq!(world.dialled(), ["93.184.216.34:80"], "one connection for both");
}

#[tokio::test]
async fn tls_goes_to_its_host_unopened() {
    let world = World::new(r#"{"allowedHosts":["example.com"]}"#);
    world.name("example.com", &[&["93.184.216.34"]]);
    world.server("93.184.216.34:443", Some("example.com"), http).await;
    let stream = world.connect_by_name("example.com", 443).await;
    let mut stream = world.public_tls(stream, "example.com").await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    drop(stream);
    // The end is told, with what it cost.
    within(async {
        while world.records.0.lock().unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    let record = world.records.0.lock().unwrap()[0].clone();
    assert_eq!((record.operation, record.key.as_deref()), ("CONNECT", Some("example.com:443")));
    assert!(record.bytes_in > 100 && record.bytes_out > 100 && record.refused.is_none(), "{record:?}");
}

#[tokio::test]
async fn other_protocols_whoever_begins() {
    let world = World::new(INTERNET);
    world.name("git.example.com", &[&["93.184.216.34"]]);
    world
        .server("93.184.216.34:22", None, |text| if text.is_empty() { "banner\r\n".into() } else { "done".into() })
        .await;
    world.server("93.184.216.34:6379", None, |text| if text.is_empty() { String::new() } else { "PONG".into() }).await;
    let mut stream = world.connect_by_name("git.example.com", 22).await;
    let mut banner = [0; 8];
    within(stream.read_exact(&mut banner)).await.unwrap();
    stream.write_all(b"client\n").await.unwrap();
    let mut answer = [0; 4];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&banner, &answer), (b"banner\r\n", b"done"));
    let mut stream = world.connect_by_name("git.example.com", 6379).await;
    stream.write_all(b"PING\n").await.unwrap();
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"PONG");
    // An address without a name.
    let mut stream = world.connect("93.184.216.34:6379").await;
    stream.write_all(b"PING\n").await.unwrap();
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"PONG");
}

#[tokio::test]
async fn protocols_that_upgrade() {
    let world = World::new(INTERNET);
    world.name("ws.example.com", &[&["93.184.216.34"]]);
    let heard = world
        .server("93.184.216.34:80", None, |text| match text {
            "" => String::new(),
            "frame\n" => "echo".into(),
            _ => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".into(),
        })
        .await;
    let mut stream = world.connect_by_name("ws.example.com", 80).await;
    let text = "GET / HTTP/1.1\r\nHost: ws.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(within(stream.read_u8()).await.unwrap());
    }
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
    stream.write_all(b"frame\n").await.unwrap();
    let mut answer = [0; 4];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"echo");
    assert!(heard.lock().unwrap()[0].contains("upgrade: websocket"));
    // It ends with the policy, too.
    world.network.set_policy(policy("{}")).unwrap();
    assert_eq!(read_all(&mut stream).await, "");
}

#[tokio::test]
async fn a_changed_policy_ends_what_it_forbids_and_nothing_else() {
    let world = World::new(r#"{"allowedHosts":["a.example.com","b.example.com","c.example.com"]}"#);
    for (name, address) in [("a", "93.184.216.34"), ("b", "93.184.216.35"), ("c", "93.184.216.36")] {
        world.name(&format!("{name}.example.com"), &[&[address]]);
        world.server(&format!("{address}:7"), None, |text| text.to_owned()).await;
    }
    let mut open = Vec::new();
    for name in ["a", "b", "c"] {
        let mut stream = world.connect_by_name(&format!("{name}.example.com"), 7).await;
        stream.write_all(b"hello\n").await.unwrap();
        within(stream.read_exact(&mut [0; 6])).await.unwrap();
        open.push(stream);
    }
    let changed =
        r#"{"allowedHosts":["b.example.com","c.example.com","d.example.com"],"deniedHosts":["93.184.216.36"]}"#;
    world.network.set_policy(policy(changed)).unwrap();
    assert_eq!(read_all(&mut open[0]).await, "");
    assert_eq!(read_all(&mut open[2]).await, "");
    open[1].write_all(b"again\n").await.unwrap();
    within(open[1].read_exact(&mut [0; 6])).await.unwrap();
    assert!(world.ask("a.example.com").await.is_err());
    let mut rules = world.rules(3).await;
    rules.sort_unstable();
    assert_eq!(rules, ["denied-host", "not-allowed-host", "not-allowed-host"]);
    // A policy that makes no sense changes nothing.
    let bad = policy(r#"{"outboundByHost":{"x":{"headers":{"host":"y"}}}}"#);
    assert!(world.network.set_policy(bad).is_err());
    assert_eq!(world.network.policy().allowed_hosts.len(), 3);
}

const ADDED: &str = r#"{"outboundByHost":{"api.example.com":{"headers":{"Authorization":"Bearer hunter2"}},
    "open.example.com":{"headers":{"x-key":"hunter3"},"allowHttp":true}}}"#;

#[tokio::test]
async fn headers_are_added() {
    let world = World::new(ADDED);
    world.name("api.example.com", &[&["93.184.216.34"]]);
    world.name("open.example.com", &[&["93.184.216.35"]]);
    let heard = world.server("93.184.216.34:443", Some("api.example.com"), http).await;
    let stream = world.connect_by_name("api.example.com", 443).await;
    // Its TLS ends in the daemon.
    let mut stream = world.tls(stream, "api.example.com").await.unwrap();
    let text = "POST /v1 HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: mine\r\nauthorization: mine too\r\n\
                Connection: authorization, close\r\nContent-Length: 2\r\n\r\nhi";
    let got = say(&mut stream, text).await;
    assert!(got.starts_with("HTTP/1.1 200 OK") && got.ends_with("POST /v1 HTTP/1.1"), "{got}");
    let said = heard.lock().unwrap()[0].to_ascii_lowercase();
    assert!(said.contains("authorization: bearer hunter2\r\n") && !said.contains("mine"), "{said}");
    // Not over plain http, unless told so.
    let mut stream = world.connect_by_name("api.example.com", 80).await;
    let got = say(&mut stream, "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 403") && !got.contains("hunter2"), "{got}");
    let heard = world.server("93.184.216.35:80", None, http).await;
    let mut stream = world.connect_by_name("open.example.com", 80).await;
    say(&mut stream, "GET / HTTP/1.1\r\nHost: open.example.com\r\nConnection: close\r\n\r\n").await;
    assert!(heard.lock().unwrap()[0].contains("x-key: hunter3\r\n"));
    assert_eq!(world.dialled(), ["93.184.216.34:443", "93.184.216.35:80"]);
    let told = format!("{:?}", world.records.0.lock().unwrap());
    assert!(told.contains("REQUEST") && !told.contains("hunter"), "{told}");
}

#[tokio::test]
async fn headers_go_to_nobody_else() {
    let world = World::new(ADDED);
    world.name("api.example.com", &[&["93.184.216.34"]]);
    // Somebody else answers there: no certificate for the name.
    let heard = world.server("93.184.216.34:443", Some("evil.example.org"), http).await;
    let say_in_tls = async |text: &str| {
        let stream = world.connect_by_name("api.example.com", 443).await;
        let mut stream = world.tls(stream, "api.example.com").await.unwrap();
        say(&mut stream, text).await
    };
    let got = say_in_tls("GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 502") && !got.contains("hunter2"), "{got}");
    for text in [
        "TRACE / HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        "CONNECT evil.org:443 HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: evil.org\r\n\r\n",
        "GET http://evil.org/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.example.com\r\nHost: evil.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.example.com@evil.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.example.com:444\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let got = say_in_tls(text).await;
        assert!(got.starts_with("HTTP/1.1 4"), "{text} {got}");
    }
    assert!(heard.lock().unwrap().is_empty());
    // A connection from before headers were added does not go on without them.
    let world = World::new(INTERNET);
    world.name("api.example.com", &[&["93.184.216.34"]]);
    world.server("93.184.216.34:7", None, |text| text.to_owned()).await;
    let mut stream = world.connect_by_name("api.example.com", 7).await;
    stream.write_all(b"hello\n").await.unwrap();
    within(stream.read_exact(&mut [0; 6])).await.unwrap();
    world.network.set_policy(policy(ADDED)).unwrap();
    assert_eq!(read_all(&mut stream).await, "");
}
