//! S3 clients and the network in sandboxes: unmodified clients through the credential proxy, the limits of their keys, and
//! what becomes of all that when mounts or the daemon go.

use std::time::Duration;

use anyhow::Result;
use sandpail_e2e::server::sandpail;
use sandpail_e2e::{Around, Daemon, Script, ServerKind, Test, World, on_peer, python, repository, short_or_long};

pub(crate) const TESTS: &[Test] = &[
    Test::new("proxy::clients", clients).on(&[ServerKind::SeaweedFs]).minutes(8, 20),
    Test::new("proxy::revoked", revoked).on(&[ServerKind::SeaweedFs]),
    Test::new("proxy::attack", attack).on(&[ServerKind::SeaweedFs]).minutes(5, 5),
    Test::new("proxy::egress", egress).on(&[ServerKind::Embedded]).minutes(5, 5),
];

/// A host name of the store, which the daemon knows and no name server does.
const STORE: &str = "objects.sandpail.test";

fn with_daemon(world: &World, script: &str, limit: Duration) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let around = Around { hosts: vec![("127.0.0.1".to_owned(), STORE.to_owned())], expose_clients: true };
    let daemon = Daemon::start_in(world, &around)?;
    let large = short_or_long(24 << 20, 200 << 20).to_string();
    let told = daemon.script(script, &[STORE, &large], limit)?;
    println!("---- {script}\n{}", told.trim());
    daemon.end()
}

/// boto3, the AWS CLI, pyarrow, DuckDB and MinIO's client, over http and https, by every name that a bucket has inside.
fn clients(world: &World) -> Result<()> {
    with_daemon(world, "proxy_clients.py", short_or_long(Duration::from_secs(400), Duration::from_secs(1100)))
}

/// An unmount ends requests under way; a daemon that is killed serves its sandboxes again when it is back.
fn revoked(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mut daemon = Daemon::start(world)?;
    let limit = Duration::from_secs(120);
    println!("{}", daemon.script("proxy_revoked.py", &["before"], limit)?.trim());
    daemon.kill()?;
    daemon.start_again()?;
    println!("{}", daemon.script("proxy_revoked.py", &["after"], limit)?.trim());
    daemon.end()
}

/// What a guest may send to get at other objects, or further than its mounts.
fn attack(world: &World) -> Result<()> {
    with_daemon(world, "proxy_attack.py", Duration::from_secs(240))
}

/// What a policy lets out, and what it does not: a daemon and servers in a network of their own.
fn egress(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let scripts = repository().join("tests/e2e/tests/sandboxes");
    let told = Script::new(
        r#"exec unshare --net --mount --propagation private "$PYTHON" "$SCRIPTS/proxy_egress.py""#,
        world.directory(),
    )
    .env("PYTHON", python())
    .env("SCRIPTS", &scripts)
    .env("PYTHONPATH", &scripts)
    .env("PYTHONDONTWRITEBYTECODE", "1")
    .env("SANDPAIL", sandpail()?)
    .limit(Duration::from_secs(240))
    .run()?;
    println!("{}", told.trim());
    Ok(())
}
