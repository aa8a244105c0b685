//! The system calls that nothing in a sandbox may make.
//!
//! A list of what is refused: exactly what the OCI default profile keeps from a container without extra capabilities, plus
//! io_uring, which that profile's newer versions refuse too. A list of what is allowed would age badly: each new system call that a C library tries
//! would fail. So that the list of refusals does not age either, a first filter says `ENOSYS` to every number that
//! was unknown when this was written, and to the x32 calling convention, which would go around the second filter.
//!
//! Sockets are another matter: each family is a protocol of its own, which the kernel loads as a module when a guest asks
//! for it. The few that programs need are listed.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// Newest system call that was looked at: `file_setattr` of Linux 6.17.
const NUMBER_MAX: u32 = 469;

const NAMESPACE_FLAGS: [i32; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    // Linux's CLONE_NEWTIME; its bit is one of the exit signal's in clone(2), where it means nothing.
    0,
];

/// Refused with `EPERM`, whatever the arguments.
const REFUSED: &[libc::c_long] = &[
    // Mounts, in both interfaces, and other roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    457, // statmount
    458, // listmount
    467, // open_tree_attr
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel's own things.
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_perf_event_open,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    // Time and names of the host.
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_settimeofday,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    // Around permissions, or into other processes.
    libc::SYS_fanotify_init,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    448, // process_mrelease
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    // Where memory lies on the host.
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    450, // set_mempolicy_home_node
    // A large surface with many past holes.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Execution domains that change nothing but the layout of addresses or the version that `uname` tells.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

/// Families of sockets that programs need. The namespaces contain them, which is not so for a virtual machine's vsock.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Puts the filters on this process and all that come from it. No-new-privileges must be set.
pub(super) fn install() -> io::Result<()> {
    for program in [unknown_calls(), denied(libc::EPERM, eperm())?, denied(libc::ENOSYS, enosys())?] {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    for program in [denied(libc::EAFNOSUPPORT, sockets())?, denied(NO_ERROR, core_limits())?] {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn eperm() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED.iter().chain(REFUSED_HERE).map(|number| (*number, Vec::new())).collect();
    let mut of_clone = Vec::new();
    for flag in NAMESPACE_FLAGS.into_iter().filter(|flag| *flag != 0) {
        let flag = u64::from(flag.unsigned_abs());
        of_clone.push(SeccompRule::new(vec![SeccompCondition::new(0, Len::Qword, Op::MaskedEq(flag), flag)?])?);
    }
    rules.insert(libc::SYS_clone, of_clone);
    let mut no_personality = Vec::new();
    for allowed in PERSONALITIES {
        no_personality.push(SeccompCondition::new(0, Len::Dword, Op::Ne, allowed)?);
    }
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(no_personality)?]);
    // What types into a terminal as if its user had: the way out of a `su` or of an attached shell.
    let mut of_ioctl = Vec::new();
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        of_ioctl.push(SeccompRule::new(vec![SeccompCondition::new(1, Len::Dword, Op::Eq, request)?])?);
    }
    rules.insert(libc::SYS_ioctl, of_ioctl);
    Ok(rules)
}

/// Flags of `clone3` are in memory, where no filter can look. C libraries fall back to `clone` at this answer.
fn enosys() -> Result<Rules, seccompiler::BackendError> {
    Ok([(libc::SYS_clone3, Vec::new())].into())
}

fn sockets() -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Vec::new();
    let is = |argument, op, value: i32| SeccompCondition::new(argument, Len::Dword, op, value.unsigned_abs().into());
    let mut others = Vec::new();
    for family in FAMILIES {
        others.push(is(0, Op::Ne, family)?);
    }
    rules.push(SeccompRule::new(others)?);
    // Of the kernel's message channels, the one about addresses and routes, which C libraries ask.
    let channels = vec![is(0, Op::Eq, libc::AF_NETLINK)?, is(2, Op::Ne, libc::NETLINK_ROUTE)?];
    rules.push(SeccompRule::new(channels)?);
    Ok([(libc::SYS_socket, rules.clone()), (libc::SYS_socketpair, rules)].into())
}

/// The call is not made, and its caller is told that all went well.
const NO_ERROR: i32 = 0;

/// The limit of core files stays what init set it to: a limit of 1 byte is the only one that keeps the kernel from handing
/// a guest's memory to a program of the host's (`|` in `core_pattern`). Programs that deal with secrets lower it to 0 and
/// give up if they cannot; what they want is so already.
fn core_limits() -> Result<Rules, seccompiler::BackendError> {
    let core = u64::from(libc::RLIMIT_CORE);
    let of_setrlimit = vec![SeccompCondition::new(0, Len::Dword, Op::Eq, core)?];
    // Asking for it, without a new value, is fine.
    let of_prlimit =
        vec![SeccompCondition::new(1, Len::Dword, Op::Eq, core)?, SeccompCondition::new(2, Len::Qword, Op::Ne, 0)?];
    Ok([
        (libc::SYS_setrlimit, vec![SeccompRule::new(of_setrlimit)?]),
        (libc::SYS_prlimit64, vec![SeccompRule::new(of_prlimit)?]),
    ]
    .into())
}

fn denied(errno: i32, rules: Result<Rules, seccompiler::BackendError>) -> io::Result<BpfProgram> {
    let build = || {
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        let action = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules?, SeccompAction::Allow, action, arch)?.try_into()
    };
    let program: Result<BpfProgram, seccompiler::BackendError> = build();
    program.map_err(io::Error::other)
}

/// `ENOSYS` for numbers above [`NUMBER_MAX`]. Classic BPF, by hand: the crate only compares for equality.
fn unknown_calls() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    const RET_ALLOW: u32 = 0x7fff_0000;
    const RET_ERRNO: u32 = 0x0005_0000;
    vec![
        // The number is the first word of what a filter sees.
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_GREATER, jt: 1, jf: 0, k: NUMBER_MAX },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: RET_ALLOW },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: RET_ERRNO | libc::ENOSYS.unsigned_abs() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_refuse_what_they_should() {
        let rules = eperm().unwrap();
        for number in [libc::SYS_mount, libc::SYS_keyctl, libc::SYS_bpf, libc::SYS_setns, libc::SYS_open_by_handle_at] {
            assert!(rules[&number].is_empty(), "{number} is refused whatever its arguments");
        }
        assert_eq!(rules[&libc::SYS_clone].len(), 7);
        assert!(!rules.contains_key(&libc::SYS_ptrace), "debuggers work inside");
        for (errno, rules) in [(libc::EPERM, eperm()), (libc::ENOSYS, enosys()), (libc::EAFNOSUPPORT, sockets())] {
            assert!(!denied(errno, rules).unwrap().is_empty());
        }
    }
}
