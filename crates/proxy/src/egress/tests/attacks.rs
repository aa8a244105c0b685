//! What a hostile sandbox tries. Nothing outside is reached by it, and each is told.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{World, policy, read_all, say, within};

const ALLOWED: &str = r#"{"allowedHosts":["good.example.com"]}"#;

fn silent(_: &str) -> String {
    String::new()
}

#[tokio::test]
async fn addresses_that_nobody_may_reach() {
    for (json, rule) in [
        ("{}", "no-internet"),
        (ALLOWED, "not-allowed-host"),
        (r#"{"enableInternet":true,"deniedHosts":["evil.org"]}"#, "raw-address"),
        (r#"{"enableInternet":true,"deniedHosts":["1.0.0.0/8"]}"#, "denied-host"),
    ] {
        let world = World::new(json);
        let mut stream = world.connect("1.1.1.1:443").await;
        assert_eq!(read_all(&mut stream).await, "", "{json}");
        assert_eq!(world.rules(1).await, [rule], "{json}");
        assert!(world.dialled().is_empty());
    }
    let world = World::new(r#"{"enableInternet":true,"allowedHosts":["*","0.0.0.0/0"]}"#);
    let mut expected = Vec::new();
    for (to, rule) in [
        ("169.254.169.254:80", "forbidden-address"),
        ("100.100.100.200:80", "forbidden-address"),
        ("0.0.0.0:22", "forbidden-address"),
        ("255.255.255.255:80", "forbidden-address"),
        // An address of the host itself.
        ("93.1.1.1:7180", "forbidden-address"),
        // Of those that stand for names, and stand for none.
        ("198.18.0.1:80", "unknown-address"),
        ("198.19.200.1:80", "unknown-address"),
        // Of the sandbox itself.
        ("127.0.0.1:80", "loopback"),
    ] {
        let mut stream = world.connect(to).await;
        let _answer = say(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        expected.push(rule);
        assert_eq!(world.rules(expected.len()).await.last(), Some(&rule), "{to}");
    }
    // The listener's own address, which nothing was redirected from.
    let mut stream = world.connect_directly().await;
    assert_eq!(say(&mut stream, "GET / HTTP/1.1\r\n\r\n").await, "");
    assert!(world.dialled().is_empty(), "{:?}", world.dialled());
}

#[tokio::test]
async fn names_that_lead_elsewhere() {
    let world = World::new(r#"{"enableInternet":true}"#);
    // First an honest address, so that the name server gives one, then others.
    for (name, later) in [
        ("loop.evil.org", "127.0.0.1"),
        ("meta.evil.org", "169.254.169.254"),
        ("mapped.evil.org", "::ffff:169.254.169.254"),
        ("nat64.evil.org", "64:ff9b::a9fe:a9fe"),
        ("local.evil.org", "fe80::1"),
        ("private.evil.org", "10.0.0.1"),
        ("unique.evil.org", "fd12::1"),
        ("own.evil.org", "93.1.1.1"),
        ("zero.evil.org", "0.0.0.0"),
    ] {
        world.name(name, &[&["93.184.216.34"], &[later]]);
        let mut stream = world.connect_by_name(name, 80).await;
        let got = say(&mut stream, &format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")).await;
        assert!(got.starts_with("HTTP/1.1 403"), "{name}: {got}");
        assert!(world.ask(name).await.is_err(), "{name}");
    }
    assert!(world.dialled().is_empty(), "{:?}", world.dialled());
    // Only the good address of several is connected to.
    world.name("mixed.evil.org", &[&["127.0.0.1", "169.254.169.254", "93.184.216.34"]]);
    world.server("93.184.216.34:7", None, |text| text.to_owned()).await;
    let mut stream = world.connect_by_name("mixed.evil.org", 7).await;
    stream.write_all(b"x\n").await.unwrap();
    within(stream.read_exact(&mut [0; 2])).await.unwrap();
    assert_eq!(world.dialled(), ["93.184.216.34:7"]);
}

#[tokio::test]
async fn a_connection_for_one_host_that_speaks_of_another() {
    let world = World::new(ALLOWED);
    world.name("good.example.com", &[&["93.184.216.34"]]);
    let plain = world.server("93.184.216.34:80", None, silent).await;
    for port in [443, 8443] {
        world.server(&format!("93.184.216.34:{port}"), Some("evil.org"), silent).await;
        let stream = world.connect_by_name("good.example.com", port).await;
        assert!(world.public_tls(stream, "evil.org").await.is_err());
        // Without a name at all: an address is none.
        let stream = world.connect_by_name("good.example.com", port).await;
        assert!(world.public_tls(stream, "93.184.216.34").await.is_err());
    }
    assert_eq!(world.rules(4).await, ["other-host"; 4]);
    for text in [
        "GET / HTTP/1.1\r\nHost: evil.org\r\n\r\n",
        "GET http://evil.org/ HTTP/1.1\r\nHost: good.example.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example.com.evil.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example.com\r\nHost: evil.org\r\n\r\n",
        "CONNECT evil.org:443 HTTP/1.1\r\nHost: evil.org:443\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\r\nPROPFIND / HTTP/1.1\r\nHost: evil.org\r\n\r\n",
    ] {
        for port in [80, 8080] {
            let mut stream = world.connect_by_name("good.example.com", port).await;
            let got = say(&mut stream, text).await;
            assert!(got.starts_with("HTTP/1.1 4") || got.is_empty(), "{text} {got}");
        }
    }
    assert!(plain.lock().unwrap().is_empty());
    assert!(world.dialled().is_empty(), "{:?}", world.dialled());
    // A second request on a good connection.
    world
        .server("93.184.216.34:81", None, |text| {
            if text.is_empty() { String::new() } else { "HTTP/1.1 204 No\r\n\r\n".into() }
        })
        .await;
    let mut stream = world.connect_by_name("good.example.com", 81).await;
    let text = "GET /1 HTTP/1.1\r\nHost: good.example.com\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.org\r\n\r\n";
    let got = say(&mut stream, text).await;
    assert!(got.starts_with("HTTP/1.1 204") && got.contains("HTTP/1.1 421"), "{got}");
}

#[tokio::test]
async fn a_client_that_waits_before_it_names_another_host() {
    let world = World::new(ALLOWED);
    world.name("good.example.com", &[&["93.184.216.34"]]);
    let heard = world
        .server("93.184.216.34:8443", None, |text| if text.is_empty() { "hi\n".into() } else { String::new() })
        .await;
    for late in ["tls", "GET / HTTP/1.1\r\nHost: evil.org\r\n\r\n"] {
        let mut stream = world.connect_by_name("good.example.com", 8443).await;
        // The host has spoken, so the connection is through.
        within(stream.read_exact(&mut [0; 3])).await.unwrap();
        if late == "tls" {
            assert!(world.public_tls(stream, "evil.org").await.is_err());
        } else {
            assert_eq!(say(&mut stream, late).await, "");
        }
    }
    assert_eq!(world.rules(2).await, ["other-host"; 2]);
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn too_many_connections() {
    let world = World::new("{}");
    let address = world.ask("r2.internal").await.unwrap().unwrap();
    let mut open = Vec::new();
    for _ in 0..super::super::CONNECTION_COUNT_MAX + 50 {
        open.push(world.connect(&format!("{address}:80")).await);
    }
    // The last ones are closed at once, the first ones stay.
    for stream in open.iter_mut().rev().take(50) {
        assert_eq!(read_all(stream).await, "");
    }
    let got = say(&mut open[0], "GET / HTTP/1.1\r\n\r\n").await;
    assert!(got.starts_with("sandbox r2.internal"), "{got}");
    // And there is room again.
    drop(open);
    within(async {
        loop {
            let mut stream = world.connect(&format!("{address}:80")).await;
            if say(&mut stream, "GET / HTTP/1.1\r\n\r\n").await.starts_with("sandbox") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn policies_of_secrets_say_nothing_of_them() {
    let world = World::new(r#"{"outboundByHost":{"api.x":{"headers":{"a":"hunter2"}}}}"#);
    assert!(!format!("{:?} {:?}", world.network, world.network.policy()).contains("hunter2"));
    assert!(!serde_json::to_string(&world.network.policy().shown()).unwrap().contains("hunter2"));
    world.network.set_policy(policy("{}")).unwrap();
}
