//! The network of real sandboxes. Needs root; without it everything is skipped, with a note. The program is its own
//! `sandbox-init`, which is why it has a small harness of its own: arguments are filters on the tests' names, as usual.

mod attacks;
mod figures;
mod uses;
mod world;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// No test takes long; one that hangs is a failure.
const TIME_MAX: Duration = Duration::from_secs(120);

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

const TESTS: &[Test] = tests![
    uses::internal_names_are_served,
    uses::a_host_that_the_policy_lets_is_reached,
    uses::a_restarted_daemon_serves_on,
    attacks::nothing_is_reached,
    attacks::the_host_is_out_of_reach,
    attacks::other_sandboxes_are_out_of_reach,
    figures::figures,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "sandbox-init") {
        return sandpail_sandbox::init_main();
    }
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped {} tests of sandboxes' networks: they need root", TESTS.len());
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut is_bad = false;
    for (name, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let result = runtime.block_on(async { tokio::time::timeout(TIME_MAX, tokio::spawn(test())).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
        let is_ok = matches!(result, Ok(Ok(())));
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        is_bad |= !is_ok;
    }
    if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
