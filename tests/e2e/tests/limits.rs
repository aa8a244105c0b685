//! Memory stays bounded, however much goes through.

use anyhow::{Result, ensure};
use sandpail_e2e::{Test, World, on_peer, short_or_long};

pub(crate) const TESTS: &[Test] = &[
    Test::new("limits::memory_of_a_large_file", large_file).minutes(10, 20),
    Test::new("limits::memory_of_a_large_directory", large_directory).minutes(10, 30),
];

fn large_file(world: &World) -> Result<()> {
    let mib = short_or_long(256, 1024);
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        &format!(
            r#"
            make() {{ "$PYTHON" -c 'import random, sys
block = random.Random(5).randbytes(1 << 20)
for n in range({mib}): sys.stdout.buffer.write(n.to_bytes(8, "big") + block[8:])'; }}
            make >big; make | cmp - big; cp big copy; cmp big copy; rm copy
            cat big >/dev/null & tail -c 100000000 big >/dev/null & wait
            "#
        ),
    )?;
    let peak = mount.peak_memory_mib()?;
    println!("  {mib} MiB written, read and copied on {}: peak memory {peak} MiB", world.kind().name());
    ensure!(on_peer() || peak < 300, "peak memory {peak} MiB");
    mount.unmount()
}

fn large_directory(world: &World) -> Result<()> {
    let count = short_or_long(6_000, 100_000);
    fill(world, count)?;
    let mount = world.mount(&[])?;
    let found = world.sh(
        &mount,
        "ls -U many | wc -l; find many -type f | wc -l; ls -f many | sort | uniq -d | wc -l; ls -l many | wc -l",
    )?;
    let peak = mount.peak_memory_mib()?;
    println!("  {count} keys listed on {}: peak memory {peak} MiB", world.kind().name());
    ensure!(found == format!("{count}\n{count}\n0\n{}\n", count + 1), "found {found}");
    ensure!(on_peer() || peak < 200, "peak memory {peak} MiB");
    mount.unmount()
}

fn fill(world: &World, count: usize) -> Result<()> {
    // Several processes, for Python's own speed is what this waits for.
    let code = format!(
        r#"
        import multiprocessing
        def some(part):
            client = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", config=Config(s3={{"addressing_style": "path"}}, max_pool_connections=8))
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: client.put_object(Bucket=bucket, Key=f"many/file-{{n:07}}", Body=b"x"), range(part, {count}, 2)))
        with multiprocessing.get_context("fork").Pool(2) as pool: pool.map(some, range(2))
        "#
    );
    world.python(&code)?;
    Ok(())
}
