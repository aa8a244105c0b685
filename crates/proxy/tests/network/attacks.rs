//! What a hostile sandbox tries of the network (CREDENTIAL-PROXY, section 5). Names and SNI are in the crate's own tests.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::uses::SERVER;
use crate::world::{Neighbour, World, python};

/// Each line of what it prints is one way that was open.
const TRY: &str = "
import socket, sys
def tcp(host, port, family=socket.AF_INET):
    s = socket.socket(family); s.settimeout(5)
    try:
        s.connect((host, port)); s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
        got = s.recv(1000)
        if got and b'403 Forbidden' not in got and b'421 ' not in got: print('open: tcp', host, port, got)
    except OSError: pass
def udp(host, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(0.5)
    try:
        s.connect((host, port)); s.send(b'x' * 100); print('open: udp', host, port, s.recv(1000))
    except OSError: pass
";

pub(crate) async fn nothing_is_reached() {
    let neighbour = Neighbour::new(2, SERVER);
    let world = World::new();
    // Whatever the policy, except where it names the place.
    for json in [
        "{}",
        r#"{"enableInternet":true}"#,
        r#"{"enableInternet":true,"allowedHosts":["*"]}"#,
        r#"{"allowedHosts":["10.213.2.2"],"deniedHosts":["10.213.0.0/16"]}"#,
    ] {
        let guarded = world.sandbox(json).await;
        let address = &neighbour.address;
        let script = format!(
            "{TRY}
for port in (80, 443, 53, 22, 8000, 65535):
    tcp('{address}', port)
    # Questions for names are the daemon's, wherever they go.
    if port != 53: udp('{address}', port)
    tcp('::ffff:{address}', port, socket.AF_INET6)
for host in ('169.254.169.254', '100.100.100.200', '168.63.129.16', '10.213.2.1', '198.18.0.1', '198.18.0.2', '198.19.1.1', '0.0.0.0', '255.255.255.255'):
    tcp(host, 80); udp(host, 80); udp(host, 443)
for host in ('fd00:ec2::254', 'fe80::1', '2606:4700::1111', '64:ff9b::a9fe:a9fe'):
    tcp(host, 80, socket.AF_INET6); udp(host, 443, socket.AF_INET6)
for name in ('localhost.evil.org', 'metadata.google.internal', 'kubernetes.default.svc', 'no.internal'):
    try: print('open: name', name, socket.getaddrinfo(name, 80))
    except OSError: pass
print('done')"
        );
        assert_eq!(python(&guarded.sandbox, &script).await, "done\n", "{json}");
        assert!(guarded.records.rules().len() > 10, "{json}: {:?}", guarded.records.rules());
        guarded.sandbox.destroy().await.unwrap();
    }
}

pub(crate) async fn the_host_is_out_of_reach() {
    // Such as the daemon's API: on the host's loopback, and on all of its addresses.
    let reached = Arc::new(AtomicUsize::new(0));
    let mut ports = Vec::new();
    for address in ["127.0.0.1:0", "0.0.0.0:0"] {
        let listener = TcpListener::bind(address).unwrap();
        ports.push(listener.local_addr().unwrap().port());
        let reached = Arc::clone(&reached);
        std::thread::spawn(move || {
            while listener.accept().is_ok() {
                reached.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    // All that a policy can let.
    let world = World::new();
    let everything = r#"{"enableInternet":true,"allowedHosts":["*","0.0.0.0/0","::/0"]}"#;
    let guarded = world.sandbox(everything).await;
    let hosts = std::process::Command::new("hostname").arg("-I").output().unwrap().stdout;
    let hosts = String::from_utf8(hosts).unwrap();
    let mut own: Vec<&str> = hosts.split_ascii_whitespace().filter(|host| !host.contains(':')).collect();
    own.extend(["127.0.0.1", "127.0.1.1", "0.0.0.0", "198.18.0.1", "198.18.0.2"]);
    let script =
        format!("{TRY}\nfor host in {own:?}:\n    for port in {ports:?}:\n        tcp(host, port)\nprint('done')");
    assert_eq!(python(&guarded.sandbox, &script).await, "done\n");
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    guarded.sandbox.destroy().await.unwrap();
}

pub(crate) async fn other_sandboxes_are_out_of_reach() {
    let world = World::new();
    let everything = r#"{"enableInternet":true,"allowedHosts":["*","0.0.0.0/0"]}"#;
    let (one, two) = (world.sandbox(everything).await, world.sandbox(everything).await);
    let server = sandpail_sandbox::ProcessSpec {
        argv: ["python3", "-m", "http.server", "8000"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    two.sandbox.start_process(server).await.unwrap();
    let wait = "
import socket, time
while True:
    try: socket.create_connection(('127.0.0.1', 8000)).close(); break
    except OSError: time.sleep(0.05)
# Names that this sandbox asks for are no other's.
print(socket.gethostbyname('secret.s3.internal'))";
    let address = python(&two.sandbox, wait).await;
    let script = format!(
        "{TRY}
for host in ('127.0.0.1', '198.18.0.1', '198.18.0.2', '{}'):
    for port in (80, 8000): tcp(host, port)
print('done')",
        address.trim()
    );
    assert_eq!(python(&one.sandbox, &script).await, "done\n");
    for guarded in [one, two] {
        guarded.sandbox.destroy().await.unwrap();
    }
}
