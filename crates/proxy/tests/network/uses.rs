//! What programs in a sandbox do.

use sandpail_proxy::Ca;

use crate::world::{Neighbour, World, policy, python, start};

pub(crate) const SERVER: &str = "
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = (self.path + ' ' + self.headers['host']).encode()
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Handler)
print('ready')
server.serve_forever()
";

pub(crate) async fn internal_names_are_served() {
    let world = World::new();
    let guarded = world.sandbox("{}").await;
    // With the certificates and resolver that programs use by themselves.
    let script = "
import urllib.request, urllib.error, socket
for url in ['http://r2.internal', 'https://r2.internal', 'https://s3-credential-proxy.internal', 'http://s3.internal:8080']:
    print(urllib.request.urlopen(url + '/__sandbox_credential_proxy_self_test__', timeout=10).read().decode().strip())
try:
    urllib.request.urlopen('https://s3-credential-proxy.internal/m/b/k', timeout=10)
except urllib.error.HTTPError as error:
    print(error.code, 'AccessDenied' in error.read().decode() or 'denied')
print(socket.getaddrinfo('r2.internal', 80, type=socket.SOCK_STREAM)[0][4][0].startswith(('198.18.', '198.19.')))
";
    let said = python(&guarded.sandbox, script).await;
    assert!(said.starts_with("OK\nOK\nOK\nOK\n403 ") && said.ends_with("True\n"), "{said}");
    guarded.sandbox.destroy().await.unwrap();
}

pub(crate) async fn a_host_that_the_policy_lets_is_reached() {
    let neighbour = Neighbour::new(1, SERVER);
    let world = World::new();
    let guarded = world.sandbox("{}").await;
    let script = format!(
        "
import urllib.request, urllib.error
try:
    print(urllib.request.urlopen('http://{}:8000/x', timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().strip())
",
        neighbour.address
    );
    let refused = python(&guarded.sandbox, &script).await;
    assert!(refused.starts_with("403 sandpail: ") && refused.contains("no internet"), "{refused}");
    guarded.network.set_policy(policy(r#"{"enableInternet":true}"#)).unwrap();
    let refused = python(&guarded.sandbox, &script).await;
    assert!(refused.contains("its address is private"), "{refused}");
    guarded.network.set_policy(policy(r#"{"allowedHosts":["10.213.1.0/30"]}"#)).unwrap();
    let said = python(&guarded.sandbox, &script).await;
    assert_eq!(said, format!("/x {}:8000\n", neighbour.address));
    guarded.network.set_policy(policy(r#"{"allowedHosts":["10.213.1.0/30"],"deniedHosts":["10.213.1.2"]}"#)).unwrap();
    assert!(python(&guarded.sandbox, &script).await.contains("deniedHosts"));
    guarded.sandbox.destroy().await.unwrap();
}

pub(crate) async fn a_restarted_daemon_serves_on() {
    let world = World::new();
    let guarded = world.sandbox("{}").await;
    let script = "
import urllib.request
print(urllib.request.urlopen('https://r2.internal/__sandbox_credential_proxy_self_test__', timeout=10).read().decode().strip())
";
    assert_eq!(python(&guarded.sandbox, script).await, "OK\n");
    let (guest, kept) = (guarded.guest, guarded.kept);
    drop((guarded.network, guarded.sandbox));
    let sandbox = world.again().recover().await.unwrap().living.remove(0);
    // The bundle inside is of the same authority.
    let _network = start(&sandbox, &guest, "{}", Ca::load(&kept).unwrap()).await;
    assert_eq!(python(&sandbox, script).await, "OK\n");
    sandbox.destroy().await.unwrap();
}
