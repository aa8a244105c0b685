//! sandpail as its users meet it: the program, a kernel mount, real servers, everyday programs.

mod bad_input;
mod crashes;
mod daemon_kills;
mod deadlines;
mod demo;
mod everyday;
mod host;
mod https;
mod integrity;
mod interop;
mod io_uring;
mod limits;
mod names;
mod passthrough;
mod path_classes;
mod posix;
mod proxy;
mod receipts;
mod requests;
mod sandboxes;
mod set_up;
mod survive;
mod two_mounts;
mod write_back;

fn main() -> std::process::ExitCode {
    let tests = [
        everyday::TESTS,
        posix::TESTS,
        names::TESTS,
        two_mounts::TESTS,
        interop::TESTS,
        requests::TESTS,
        receipts::TESTS,
        bad_input::TESTS,
        set_up::TESTS,
        https::TESTS,
        host::TESTS,
        crashes::TESTS,
        integrity::TESTS,
        demo::TESTS,
        limits::TESTS,
        sandboxes::TESTS,
        proxy::TESTS,
        write_back::TESTS,
        passthrough::TESTS,
        io_uring::TESTS,
        path_classes::TESTS,
        survive::TESTS,
        daemon_kills::TESTS,
        deadlines::TESTS,
    ];
    sandpail_e2e::runner::main(&tests.concat())
}
