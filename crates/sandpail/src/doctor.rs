//! `sandpail doctor`: what this host, and a bucket, can do.

use std::path::Path;
use std::process::ExitCode;

use sandpail_sandbox::Runtime;
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::host;
use crate::progress::Waiting;
use crate::report;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    grade: Grade,
    what: &'static str,
    text: String,
}

fn finding(grade: Grade, what: &'static str, text: impl Into<String>) -> Finding {
    Finding { grade, what, text: text.into() }
}

pub(crate) fn run(arguments: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut findings = host_findings();
    if let Some(bucket) = &arguments.bucket {
        let waiting = Waiting::start(&format!("examining {bucket}"));
        findings.extend(bucket_findings(bucket, arguments));
        drop(waiting);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            let mark = match finding.grade {
                Grade::Ok => "ok  ",
                Grade::Warn => "warn",
                Grade::Fail => "FAIL",
            };
            println!("{mark}  {:<22} {}", finding.what, finding.text);
        }
    }
    let is_bad = findings.iter().any(|finding| finding.grade == Grade::Fail);
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn host_findings() -> Vec<Finding> {
    use Grade::{Fail, Ok, Warn};
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let mut found = Vec::new();
    found.push(match host::check_fuse() {
        Result::Ok(()) => finding(Ok, "FUSE", "mounts can be made by this user"),
        Err(error) => finding(Fail, "FUSE", report::in_one_line(&error)),
    });
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version: Vec<u32> = release.split(['.', '-']).take(2).filter_map(|part| part.parse().ok()).collect();
    let at_least = |major, minor| version.as_slice() >= &[major, minor][..];
    found.push(if at_least(6, 9) {
        finding(Ok, "kernel", format!("{release}: a mount goes on when its process is killed; FUSE passthrough is there"))
    } else {
        finding(Warn, "kernel", format!("{release}: from 6.9 on a mount goes on when its process is killed; here it fails (ENOTCONN), and what was written is kept for the next mount"))
    });
    let user_allow_other = read("/etc/fuse.conf").lines().any(|line| line.trim() == "user_allow_other");
    found.push(match (rustix::process::geteuid().is_root(), user_allow_other) {
        (true, _) => finding(Ok, "--allow-other", "root may use it"),
        (false, true) => finding(Ok, "--allow-other", "/etc/fuse.conf lets users use it"),
        (false, false) => finding(Warn, "--allow-other", "add the line user_allow_other to /etc/fuse.conf to use it"),
    });
    let pages = read("/proc/sys/fs/fuse/max_pages_limit");
    found.push(match pages.parse::<u64>() {
        Result::Ok(pages) => finding(Ok, "request size", format!("{} KiB (fs.fuse.max_pages_limit)", pages * 4)),
        Err(_) => finding(Warn, "request size", "older kernel: 1 MiB at most"),
    });
    found.push(match read("/sys/module/fuse/parameters/enable_uring").as_str() {
        "Y" => finding(Ok, "FUSE over io_uring", "switched on, for mounts with --io-uring"),
        "N" => finding(
            Warn,
            "FUSE over io_uring",
            "off: --io-uring does nothing (echo Y > /sys/module/fuse/parameters/enable_uring)",
        ),
        _ => finding(Warn, "FUSE over io_uring", "this kernel lacks it (Linux 6.14): --io-uring does nothing"),
    });
    let namespaces = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];
    let missing: Vec<_> =
        namespaces.into_iter().filter(|name| !Path::new("/proc/self/ns").join(name).exists()).collect();
    found.push(if missing.is_empty() {
        finding(Ok, "namespaces", "all are there")
    } else {
        finding(Warn, "namespaces", format!("missing: {}; sandboxes need them", missing.join(", ")))
    });
    found.push(match host::find_program("nft") {
        Some(path) => finding(Ok, "nft", path.display().to_string()),
        None => {
            finding(Warn, "nft", "not found; a sandbox's way to the internet will need it (Debian package nftables)")
        }
    });
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    found.push(if files >= 4096 {
        finding(Ok, "open files", format!("{files}"))
    } else {
        finding(Warn, "open files", format!("{files}: raise it with ulimit -n 65536 for busy mounts"))
    });
    // What sandboxes need is nothing that a mount lacks, so none of it is a failure.
    found.extend(
        Runtime::findings().into_iter().map(|found| {
            finding(if found.is_ok { Ok } else { Warn }, found.what, format!("sandboxes: {}", found.detail))
        }),
    );
    found
}

fn bucket_findings(bucket: &str, arguments: &DoctorArgs) -> Vec<Finding> {
    crate::probe::probe(bucket, arguments)
        .into_iter()
        .map(|step| {
            let grade = match step.result {
                Ok(_) => Grade::Ok,
                Err(_) if step.is_optional => Grade::Warn,
                Err(_) => Grade::Fail,
            };
            Finding { grade, what: step.what, text: step.result.unwrap_or_else(|text| text) }
        })
        .collect()
}
