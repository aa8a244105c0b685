//! Not a test of speed, which belongs to the benches: prints what a sandbox's network costs.

use std::time::Instant;

use crate::world::{Neighbour, World, python};

const SOURCE: &str = "
import socket, threading
server = socket.create_server(('0.0.0.0', 8000))
print('ready')
chunk = bytes(1 << 20)
def serve(s):
    s.recv(10)
    for _ in range(512): s.sendall(chunk)
    s.close()
while True: threading.Thread(target=serve, args=(server.accept()[0],)).start()
";

/// Bytes of this process that are in memory.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

pub(crate) async fn figures() {
    let neighbour = Neighbour::new(3, SOURCE);
    let world = World::new();
    let first = world.sandbox("{}").await;
    let before = memory();
    let (mut all, mut times) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let start = Instant::now();
        all.push(world.sandbox("{}").await);
        times.push(start.elapsed().as_millis());
    }
    println!("  memory of the daemon per guest: {} KiB", (memory() - before) / 20 / 1024);
    times.sort_unstable();
    println!("  create with certificates and network: p50 {} ms", times[10]);
    let json = r#"{"allowedHosts":["10.213.3.2"]}"#;
    first.network.set_policy(crate::world::policy(json)).unwrap();
    let script = format!(
        "
import socket, time, threading
def take(host):
    start = time.time(); s = socket.create_connection((host, 8000)); s.sendall(b'x'); n = 0; b = bytearray(1 << 20)
    while (got := s.recv_into(b)): n += got
    assert n == 512 << 20, n
    return f'{{n / (1 << 20) / (time.time() - start):.0f}} MiB/s'
{SOURCE_INSIDE}
print('loopback', take('127.0.0.1'), 'through the network', take('{}'))
times = []
for _ in range(50):
    start = time.time(); socket.create_connection(('r2.internal', 80)).close(); times.append(time.time() - start)
print(f'name and connection p50 {{sorted(times)[25] * 1e6:.0f}} us')
",
        neighbour.address
    );
    print!("  {}", python(&first.sandbox, &script).await);
    for guarded in all {
        guarded.sandbox.destroy().await.unwrap();
    }
    first.sandbox.destroy().await.unwrap();
}

const SOURCE_INSIDE: &str = "
server = socket.create_server(('127.0.0.1', 8000)); chunk = bytes(1 << 20)
def serve():
    s = server.accept()[0]; s.recv(10)
    for _ in range(512): s.sendall(chunk)
    s.close()
threading.Thread(target=serve, daemon=True).start()
";
