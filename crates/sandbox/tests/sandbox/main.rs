//! Sandboxes for real. Needs root; without it everything is skipped, with a note. The program is its own `sandbox-init`,
//! which is why it has a small harness of its own: arguments are filters on the tests' names, as usual.

mod commands;
mod files;
mod isolation;
mod latency;
mod lives;
mod mounts;
mod network;
mod sessions;
mod world;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// No test takes long; one that hangs is a failure.
const TIME_MAX: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some("sandbox-init") {
        return sandpail_sandbox::init_main();
    }
    let tests: Vec<Test> = [
        commands::TESTS,
        files::TESTS,
        sessions::TESTS,
        isolation::TESTS,
        latency::TESTS,
        lives::TESTS,
        mounts::TESTS,
        network::TESTS,
    ]
    .concat();
    if arguments.any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped {} tests of sandboxes: they need root", tests.len());
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let start = Instant::now();
        let result = runtime.block_on(async { tokio::time::timeout(TIME_MAX, tokio::spawn(test())).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
        let is_ok = matches!(result, Ok(Ok(())));
        println!("test {name} ... {} ({} ms)", if is_ok { "ok" } else { "FAILED" }, start.elapsed().as_millis());
        if !is_ok {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// A table of the tests of a module.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::Test] = &[$((
            concat!(module_path!(), "::", stringify!($name)),
            || Box::pin($name()),
        )),*];
    };
}
