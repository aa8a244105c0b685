//! What this host offers to sandboxes.

use std::fs;
use std::path::Path;

use crate::Finding;
use crate::cgroup::Cgroups;

pub(crate) fn all() -> Vec<Finding> {
    let mut findings = vec![root(), user_namespaces(), overlay(), id_mapped_mounts(), disk_limit(), network()];
    findings.extend(Cgroups::detect().findings());
    findings
}

fn root() -> Finding {
    let is_ok = rustix::process::geteuid().is_root();
    let detail = if is_ok { "the daemon is root" } else { "run the daemon as root: sandboxes need it" };
    Finding { what: "root", is_ok, detail: detail.to_owned() }
}

fn user_namespaces() -> Finding {
    let max = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let max: u64 = max.trim().parse().unwrap_or_default();
    let is_ok = max > 0;
    let detail = if is_ok {
        format!("up to {max}")
    } else {
        "raise /proc/sys/user/max_user_namespaces; the kernel needs CONFIG_USER_NS".to_owned()
    };
    Finding { what: "user namespaces", is_ok, detail }
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_ok = known.lines().any(|line| line.ends_with("\toverlay")) || Path::new("/sys/module/overlay").exists();
    let detail = if is_ok { "overlay is there" } else { "load the kernel module `overlay`" };
    Finding { what: "overlay file system", is_ok, detail: detail.to_owned() }
}

/// Tried when a sandbox starts; here by version only, as a trial needs a user namespace.
fn id_mapped_mounts() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let is_ok = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= (5, 19);
    let detail = if is_ok {
        format!("Linux {release}")
    } else {
        format!("Linux {release} is older than 5.19: system files seem to belong to nobody inside sandboxes")
    };
    Finding { what: "id-mapped mounts", is_ok, detail }
}

fn network() -> Finding {
    let (is_ok, detail) = match crate::network::probe() {
        Ok(()) => (true, "connections of sandboxes can be led to the daemon (nf_tables, NAT, conntrack)".to_owned()),
        Err(error) => (
            false,
            format!(
                "no credential proxy and no internet for sandboxes: {error}; load the modules nf_tables, nft_chain_nat, \
                 nft_redir, nft_reject_ipv4, nf_conntrack"
            ),
        ),
    };
    Finding { what: "network of sandboxes", is_ok, detail }
}

fn disk_limit() -> Finding {
    let directories = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let is_tool = |name: &str| directories.iter().any(|directory| Path::new(directory).join(name).exists());
    let is_ok = is_tool("mkfs.ext4") && is_tool("mount") && Path::new("/dev/loop-control").exists();
    let detail = if is_ok {
        "bounded by a file system image on a loop device; used only when a limit is asked for"
    } else {
        "install e2fsprogs and mount, and load the module `loop`: without them a limit of the disk is refused"
    };
    Finding { what: "disk limit", is_ok, detail: detail.to_owned() }
}
