//! The network of a sandbox: nothing at first, then the daemon's sockets and nothing else; and what of the daemon's is
//! shown inside.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sandpail_sandbox::{
    ExecSpec, Listeners, NAME_SERVER, ProcessSpec, RootFs, Sandbox, SandboxError, SandboxFile, SandboxSpec, SessionSpec,
};

use crate::world::{World, earlier_daemon, exec, run, runtime, shell, words};

crate::tests![
    without_the_daemon_there_is_no_way_out,
    connections_come_to_the_daemon,
    questions_for_names_come_to_the_daemon,
    everything_else_fails_at_once,
    the_guest_cannot_be_in_the_way,
    nobody_inside_can_change_it,
    loopback_is_the_guests_own,
    a_restarted_daemon_takes_over,
    opening_is_quick,
    files_of_the_daemon,
    the_environment_changes_later,
];

/// Tries to connect and says how that ended, in one word.
const CONNECT: &str = "
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
    s.sendall(sys.argv[3].encode()); s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode())
except OSError as error:
    print(type(error).__name__, error.errno)
";

/// Takes connections, tells where they wanted to go, and answers by what they sent.
fn answer_connections(listeners: &Listeners) -> std::sync::mpsc::Receiver<(SocketAddr, SocketAddr, String)> {
    let listener = listeners.connections.try_clone().unwrap();
    listener.set_nonblocking(false).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((stream, from)) = listener.accept() {
            let to = rustix::net::sockopt::ip_original_dst(&stream);
            let to = to.map_or(stream.local_addr().unwrap(), SocketAddr::V4);
            let text = answer(stream);
            if sender.send((from, to, text)).is_err() {
                return;
            }
        }
    });
    receiver
}

fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_to_string(&mut text).unwrap();
    stream.write_all(format!("got {text}").as_bytes()).unwrap();
    text
}

async fn connect(sandbox: &Sandbox, host: &str, port: &str) -> String {
    run(sandbox, &["python3", "-c", CONNECT, host, port, "hello"]).await.stdout.trim().to_owned()
}

async fn without_the_daemon_there_is_no_way_out() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    for host in ["1.1.1.1", "169.254.169.254", "198.18.0.2", "2606:4700::1111", "10.0.0.1"] {
        // Network is unreachable.
        assert_eq!(connect(&sandbox, host, "80").await, "OSError 101", "{host}");
    }
    let start = Instant::now();
    assert!(connect(&sandbox, "example.com", "80").await.starts_with("gaierror"));
    assert!(start.elapsed() < Duration::from_secs(2));
    sandbox.destroy().await.unwrap();
    assert!(matches!(sandbox.open_network().await, Err(SandboxError::Gone)));
}

async fn connections_come_to_the_daemon() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let listeners = sandbox.open_network().await.unwrap();
    let own = listeners.connections.local_addr().unwrap();
    let seen = answer_connections(&listeners);
    for (host, port) in [
        ("1.1.1.1", 80_u16),
        ("169.254.169.254", 1),
        ("10.0.0.1", 65535),
        ("198.18.7.7", 443),
        ("198.18.0.1", 5000),
        ("198.18.0.2", 53),
        ("255.255.255.254", 22),
        ("224.0.0.1", 22),
    ] {
        let done = connect(&sandbox, host, &port.to_string()).await;
        if host.starts_with("224.") {
            // Multicast is no place for TCP.
            assert!(done.starts_with("OSError"), "{host}: {done}");
            continue;
        }
        assert_eq!(done, "got hello", "{host}");
        let (from, to, _) = seen.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(to, SocketAddr::new(host.parse().unwrap(), port));
        assert!(from.ip() == sandpail_sandbox::SOURCE || host == "198.18.0.1", "{from}");
    }
    // By way of an IPv6 socket.
    assert_eq!(connect(&sandbox, "::ffff:1.2.3.4", "80").await, "got hello");
    assert_eq!(seen.recv().unwrap().1, "1.2.3.4:80".parse().unwrap());
    // The socket's own address is known as such, whatever the guest does.
    assert_eq!(connect(&sandbox, "127.0.0.1", &own.port().to_string()).await, "got hello");
    assert_eq!(seen.recv().unwrap().1, own);
    sandbox.destroy().await.unwrap();
}

async fn questions_for_names_come_to_the_daemon() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let names = sandbox.open_network().await.unwrap().names;
    names.set_nonblocking(false).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..3 {
            let mut packet = [0; 512];
            let (len, from) = names.recv_from(&mut packet).unwrap();
            names.send_to(&packet[..len], from).unwrap();
        }
    });
    let line = "
import socket, sys
for to in [('198.18.0.2', 53), ('8.8.8.8', 53), ('127.0.0.2', 53)]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    try:
        # Only an answer from the address that was asked is taken.
        s.connect(to); s.send(b'q'); print(s.recv(10).decode())
    except OSError as error:
        print(error.errno)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b'q', ('1.1.1.1', 53)); print(s.recvfrom(10)[1])
";
    let done = run(&sandbox, &["python3", "-c", line]).await;
    // Nobody listens on the guest's own loopback.
    assert_eq!(done.stdout, "q\nq\n111\n('1.1.1.1', 53)\n", "{done:?}");
    server.join().unwrap();
    let done = run(&sandbox, &["cat", "/etc/resolv.conf"]).await.stdout;
    assert!(done.contains(&format!("nameserver {NAME_SERVER}\n")), "{done}");
    sandbox.destroy().await.unwrap();
}

async fn everything_else_fails_at_once() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let listeners = sandbox.open_network().await.unwrap();
    let line = "
import socket
def udp(host, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
    try:
        s.connect((host, port)); s.send(b'x'); s.recv(10); return 'answered'
    except OSError as error:
        return error.errno
print(udp('1.1.1.1', 443), udp('169.254.169.254', 80), udp('198.18.3.3', 123), udp('224.0.0.251', 5353))
print(udp('2606:4700::1111', 443, socket.AF_INET6), udp('ff02::fb', 5353, socket.AF_INET6))
for family, kind, protocol in [(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), (socket.AF_INET, socket.SOCK_RAW, 1),
                               (socket.AF_INET, socket.SOCK_STREAM, 132), (socket.AF_INET, socket.SOCK_DGRAM, 136), (socket.AF_PACKET, socket.SOCK_RAW, 0)]:
    try:
        s = socket.socket(family, kind, protocol); s.settimeout(5); s.connect(('1.1.1.1', 9)); s.send(b'x' * 64); s.recv(10); print('open')
    except OSError as error:
        print('closed')
";
    let start = Instant::now();
    let done = run(&sandbox, &["python3", "-c", line]).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let lines: Vec<&str> = done.stdout.lines().collect();
    // EPERM is what the kernel says of packets that rules refuse; the ICMP answer says EHOSTUNREACH.
    for errno in lines[0].split(' ') {
        assert!(["1", "113"].contains(&errno), "{done:?}");
    }
    for errno in lines[1].split(' ') {
        assert!(["101", "99", "113", "22"].contains(&errno), "{done:?}");
    }
    assert_eq!(lines[2..], ["closed"; 5], "{done:?}");
    drop(listeners);
    sandbox.destroy().await.unwrap();
}

async fn the_guest_cannot_be_in_the_way() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    // All usual ports for such things, and a wildcard beside the daemon's.
    let spec = ProcessSpec {
        argv: words(&[
            "python3",
            "-c",
            "
import socket, time
kept = []
for port in (53, 15001):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(('0.0.0.0', port)); kept.append(s)
        if kind == socket.SOCK_STREAM: s.listen()
open('/tmp/ready', 'w').close()
time.sleep(1000)",
        ]),
        ..ProcessSpec::default()
    };
    sandbox.start_process(spec).await.unwrap();
    while run(&sandbox, &["test", "-e", "/tmp/ready"]).await.code != 0 {}
    let listeners = sandbox.open_network().await.unwrap();
    let (tcp, udp) = (listeners.connections.local_addr().unwrap().port(), listeners.names.local_addr().unwrap().port());
    let seen = answer_connections(&listeners);
    let line = format!(
        "
import socket
for address in ('127.0.0.1', '0.0.0.0'):
    for port, kind in (({tcp}, socket.SOCK_STREAM), ({udp}, socket.SOCK_DGRAM)):
        s = socket.socket(socket.AF_INET, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address, port))
            if kind == socket.SOCK_STREAM: s.listen()
            print('bound')
        except OSError as error:
            print(error.errno)
"
    );
    let done = run(&sandbox, &["python3", "-c", &line]).await;
    assert_eq!(done.stdout, "98\n98\n98\n98\n", "{done:?}");
    assert_eq!(connect(&sandbox, "198.18.5.5", "15001").await, "got hello");
    assert_eq!(seen.recv().unwrap().1, "198.18.5.5:15001".parse().unwrap());
    sandbox.destroy().await.unwrap();
}

async fn nobody_inside_can_change_it() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let _listeners = sandbox.open_network().await.unwrap();
    for line in [
        "nft flush ruleset",
        "nft add table ip x",
        "ip route add 1.1.1.1 dev lo",
        "ip route del default",
        "ip addr add 1.1.1.1/32 dev lo",
        "ip addr del 198.18.0.1/32 dev lo",
        "ip rule add table 5",
        "unshare -rn true",
        "python3 -c 'import socket; s=socket.socket(); s.setsockopt(0, 19, 1)'",
        "python3 -c 'import socket; s=socket.socket(); s.setsockopt(1, 36, 5)'",
        "echo 1 >/proc/sys/net/ipv4/conf/lo/route_localnet",
    ] {
        let done = shell(&sandbox, &format!("PATH=$PATH:/usr/sbin:/sbin; {line}")).await;
        assert_ne!(done.code, 0, "{line}: {done:?}");
    }
    sandbox.destroy().await.unwrap();
}

async fn loopback_is_the_guests_own() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let _listeners = sandbox.open_network().await.unwrap();
    let line = "
import socket, threading
for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET, '127.7.7.7'), (socket.AF_INET6, '::1')):
    server = socket.socket(family); server.bind((host, 0)); server.listen()
    client = socket.create_connection(server.getsockname()[:2], timeout=5)
    client.sendall(b'tcp'); print(server.accept()[0].recv(10).decode())
    server = socket.socket(family, socket.SOCK_DGRAM); server.bind((host, 0)); server.settimeout(5)
    client = socket.socket(family, socket.SOCK_DGRAM); client.sendto(b'udp', server.getsockname()[:2]); print(server.recv(10).decode())
";
    let done = run(&sandbox, &["python3", "-c", line]).await;
    assert_eq!(done.stdout, "tcp\nudp\n".repeat(3), "{done:?}");
    sandbox.destroy().await.unwrap();
}

async fn a_restarted_daemon_takes_over() {
    let world = World::new();
    let state = world.directory.path().to_owned();
    earlier_daemon(async move {
        let sandbox = runtime(&state).create(crate::world::new_id(), SandboxSpec::default()).await.unwrap();
        let _listeners = sandbox.open_network().await.unwrap();
    })
    .await;
    let sandbox = runtime(world.directory.path()).recover().await.unwrap().living.remove(0);
    // Between the daemons nobody listens.
    assert_eq!(connect(&sandbox, "1.1.1.1", "80").await, "ConnectionRefusedError 111");
    for _ in 0..3 {
        let listeners = sandbox.open_network().await.unwrap();
        let seen = answer_connections(&listeners);
        assert_eq!(connect(&sandbox, "1.1.1.1", "80").await, "got hello");
        assert_eq!(seen.recv().unwrap().1, SocketAddr::new(Ipv4Addr::new(1, 1, 1, 1).into(), 80));
    }
    sandbox.destroy().await.unwrap();
}

async fn opening_is_quick() {
    let world = World::new();
    let mut times = Vec::new();
    for _ in 0..10 {
        let sandbox = world.sandbox().await;
        let start = Instant::now();
        let _listeners = sandbox.open_network().await.unwrap();
        times.push(start.elapsed().as_micros());
        sandbox.destroy().await.unwrap();
    }
    times.sort_unstable();
    println!("  open_network: p50 {} us, p95 {} us", times[5], times[9]);
}

async fn files_of_the_daemon() {
    let world = World::new();
    let bundle = SandboxFile {
        path: "/etc/ssl/certs/ca-certificates.crt".into(),
        content: Bytes::from(vec![b'c'; 300_000]),
        is_optional: false,
    };
    let other = |path: &str, is_optional| SandboxFile { path: path.into(), is_optional, ..bundle.clone() };
    let hosts = SandboxFile { path: "/etc/hosts".into(), content: "1.2.3.4 r2\n".into(), is_optional: false };
    let files =
        vec![bundle.clone(), other("/etc/pki/no/such/bundle.crt", true), other("/a/new/place.pem", false), hosts];
    let image = tempfile::tempdir().unwrap();
    for directory in ["etc/ssl/certs", "usr/bin", "bin", "lib"] {
        std::fs::create_dir_all(image.path().join(directory)).unwrap();
    }
    // Links that would lead out of the root, and to what is covered later.
    std::os::unix::fs::symlink("/run/x.crt", image.path().join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/shadow", image.path().join("etc/hosts")).unwrap();
    let busybox = "/bin/busybox";
    let mut kinds = vec![RootFs::Host];
    if std::path::Path::new(busybox).exists() {
        std::fs::copy(busybox, image.path().join("bin/sh")).unwrap();
        kinds.push(RootFs::Directory(image.path().to_owned()));
    }
    for rootfs in kinds {
        let sandbox = world.create(SandboxSpec { rootfs, files: files.clone(), ..SandboxSpec::default() }).await;
        for path in ["/etc/ssl/certs/ca-certificates.crt", "/a/new/place.pem"] {
            let reader = sandbox.read_file(&PathBuf::from(path)).await.unwrap();
            assert_eq!(reader.size, 300_000, "{path}");
        }
        assert!(sandbox.stat(&PathBuf::from("/etc/pki/no")).await.is_err());
        let tools = [
            "sh",
            "-c",
            "read line </etc/hosts; echo $line; \
             for f in /etc/ssl/certs/ca-certificates.crt /etc/hosts /a/new/place.pem; do (echo x >$f) 2>/dev/null && echo written; done; true",
        ];
        assert_eq!(run(&sandbox, &tools).await.stdout, "1.2.3.4 r2\n");
        sandbox.destroy().await.unwrap();
    }
    let sandbox = world.create(SandboxSpec { files, ..SandboxSpec::default() }).await;
    for line in [
        "rm -f /etc/hosts",
        "mv /etc/hosts /etc/h",
        "mv /etc/ssl/certs/ca-certificates.crt /tmp",
        "chmod 666 /etc/hosts",
        "chown 1 /etc/hosts",
        "umount /etc/hosts",
        "mount -o remount,rw /etc/hosts",
        "truncate -s 0 /a/new/place.pem",
    ] {
        assert_ne!(shell(&sandbox, line).await.code, 0, "{line}");
    }
    assert_eq!(run(&sandbox, &["stat", "-c", "%u %a", "/etc/hosts"]).await.stdout, "0 444\n");
    sandbox.destroy().await.unwrap();
    let relative = SandboxSpec { files: vec![other("etc/x", false)], ..SandboxSpec::default() };
    let refused = world.runtime.create(crate::world::new_id(), relative).await.unwrap_err();
    assert!(refused.to_string().contains("etc/x"), "{refused}");
}

async fn the_environment_changes_later() {
    let world = World::new();
    let variables = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let spec = SandboxSpec { env: variables(&[("OWN", "create")]), ..SandboxSpec::default() };
    let sandbox = world.create(spec).await;
    let session = sandbox.create_session(SessionSpec::default()).await.unwrap();
    let say = words(&["sh", "-c", "echo ${A-none} ${LANG} ${OWN} ${ONLY-none}"]);
    let in_session = ExecSpec { argv: say.clone(), session: Some(session), ..ExecSpec::default() };
    assert_eq!(exec(&sandbox, in_session.clone()).await.unwrap().stdout, "none C.UTF-8 create none\n");
    sandbox.set_environment(variables(&[("A", "daemon"), ("LANG", "daemon"), ("OWN", "daemon")])).unwrap();
    let bare = ExecSpec { argv: say.clone(), ..ExecSpec::default() };
    assert_eq!(exec(&sandbox, bare.clone()).await.unwrap().stdout, "daemon daemon create none\n");
    let with = ExecSpec { env: variables(&[("A", "caller"), ("ONLY", "caller")]), ..bare.clone() };
    assert_eq!(exec(&sandbox, with).await.unwrap().stdout, "caller daemon create caller\n");
    // A session takes them over once; then they are its own.
    assert_eq!(exec(&sandbox, in_session.clone()).await.unwrap().stdout, "daemon daemon create none\n");
    let own = ExecSpec { argv: words(&["export", "A=session"]), ..in_session.clone() };
    assert_eq!(exec(&sandbox, own).await.unwrap().code, 0);
    let own = ExecSpec { argv: words(&["unset", "LANG"]), ..in_session.clone() };
    assert_eq!(exec(&sandbox, own).await.unwrap().code, 0);
    assert_eq!(exec(&sandbox, in_session.clone()).await.unwrap().stdout, "session create none\n");
    // A restarted daemon knows it.
    drop(sandbox);
    let sandbox = runtime(world.directory.path()).recover().await.unwrap().living.remove(0);
    assert_eq!(exec(&sandbox, bare.clone()).await.unwrap().stdout, "daemon daemon create none\n");
    sandbox.set_environment(variables(&[("A", "later")])).unwrap();
    assert_eq!(exec(&sandbox, in_session).await.unwrap().stdout, "later create none\n");
    sandbox.set_environment(BTreeMap::new()).unwrap();
    assert_eq!(exec(&sandbox, bare).await.unwrap().stdout, "none C.UTF-8 create none\n");
    sandbox.destroy().await.unwrap();
}
