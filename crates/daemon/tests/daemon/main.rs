//! The daemon with real sandboxes and mounts. Needs root and `/dev/fuse`; without them everything is skipped, with a
//! note. The program is its own `sandbox-init` and `mount-worker`, which is why it has a small harness of its own:
//! arguments are filters on the tests' names, as usual.

mod mounts;
mod recovery;
mod sandboxes;
mod world;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// Names a test for the list.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::Test] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

/// No test takes long; one that hangs is a failure.
const TIME_MAX: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("sandbox-init") => return sandpail_sandbox::init_main(),
        Some("sandbox-agent") => return sandpail_sandbox::agent_main(),
        Some(sandpail_daemon::worker::ARGUMENT) => return sandpail_daemon::worker::main(),
        Some(sandpail_daemon::worker::witness::ARGUMENT) => return sandpail_daemon::worker::witness::main(),
        Some(recovery::VICTIM) => return recovery::victim(Path::new(&arguments[1])),
        _ => {}
    }
    let tests: Vec<Test> = [mounts::TESTS, sandboxes::TESTS, recovery::TESTS].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("skipped {} tests of the daemon: they need root and /dev/fuse", tests.len());
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("SANDPAIL_TEST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter("debug").with_writer(std::io::stderr).init();
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let start = Instant::now();
        let result = runtime.block_on(async { tokio::time::timeout(TIME_MAX, tokio::spawn(test())).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
        let is_good = matches!(result, Ok(Ok(())));
        if result.is_err() {
            println!("{name} took more than {TIME_MAX:?}");
        }
        println!("test {name} ... {} ({:.2} s)", if is_good { "ok" } else { "FAILED" }, start.elapsed().as_secs_f64());
        if !is_good {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
