//! What a sandbox's root must not be able to do, tried from inside.

use std::fs;

use sandpail_sandbox::{Limits, SandboxSpec};

use crate::world::{World, shell};

crate::tests![
    no_powers,
    no_system_calls,
    nothing_of_the_host_is_visible,
    init_is_out_of_reach,
    files_belong_to_root_inside,
    limits_hold,
    what_nobody_limited_is_bounded,
    no_core_goes_to_a_program_of_the_host,
    hidden_directories_have_no_other_names,
    output_can_be_opened_by_name,
    children_left_behind_take_few_descriptors,
    what_is_exposed_is_read_only,
];

async fn no_powers() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    for line in [
        "mount -t tmpfs none /mnt",
        "mount --bind /usr /mnt",
        "mount -o remount,rw /proc/sys",
        "umount /proc",
        "umount /dev/shm",
        "mknod /tmp/sda b 8 0",
        "mknod /tmp/kmsg c 1 11",
        "unshare -U true",
        "unshare -r -m true",
        "unshare -n true",
        "nsenter -t 1 -m true",
        "echo 1 >/proc/sys/kernel/panic",
        "echo '|/tmp/x' >/proc/sys/kernel/core_pattern",
        "echo b >/proc/sysrq-trigger",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
        "hostname other",
        "dmesg",
        "cat /proc/kcore | head -c 1 | grep -q .",
        "cat /proc/keys | grep .",
        "ip link set lo down",
        "ip link add d0 type dummy",
        "ping -c 1 -W 1 127.0.0.1 && python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
        "python3 -c 'import socket; socket.socket(40, socket.SOCK_STREAM)'",
        "chroot / mount -t tmpfs none /mnt",
        "date -s '2001-01-01'",
        "swapoff -a && false",
        "ls /sys/fs/cgroup/* 2>/dev/null | grep release_agent",
        "echo x >/etc/resolv.conf",
        "rm /etc/hosts",
        "ls -d /dev/fuse /dev/kvm /dev/vda /dev/loop-control 2>/dev/null | grep .",
        "touch /sys/devices/system/cpu/x",
        "test -w /proc/sys/kernel/hostname",
    ] {
        let done = shell(&sandbox, line).await;
        assert_ne!(done.code, 0, "{line}: {done:?}");
    }
    for line in [
        "echo x >/dev/shm/f && cat /dev/shm/f",
        "test $(stat -c %t%T /dev/null) = 13",
        "echo >/dev/null",
        "head -c 5 /dev/urandom | wc -c",
        "test -e /proc/self/status",
        "python3 -c 'import socket; s=socket.socket(); s.bind((\"127.0.0.1\",80)); s.listen(); c=socket.create_connection((\"localhost\",80))'",
        "su sandbox -s /bin/sh -c 'test $(id -u) = 1000' || setpriv --reuid 1000 --regid 1000 --clear-groups true",
    ] {
        let done = shell(&sandbox, line).await;
        assert_eq!(done.code, 0, "{line}: {done:?}");
    }
    let done = shell(
        &sandbox,
        "grep -E '^(Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\t\n' ' '",
    )
    .await;
    let expected = "CapInh: 0000000000000000 CapPrm: 00000000a00405fb CapEff: 00000000a00405fb \
                    CapBnd: 00000000a00405fb CapAmb: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ";
    assert_eq!(done.stdout, expected);
    sandbox.destroy().await.unwrap();
}

/// Calls system calls by number and prints the errors' numbers.
const SYSTEM_CALLS: &str = r#"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in sys.argv[1:]:
    ctypes.set_errno(0)
    arguments = [int(part, 0) for part in number.split(",")]
    result = libc.syscall(*[ctypes.c_long(argument) for argument in arguments])
    print(ctypes.get_errno() if result == -1 else 0)
"#;

async fn no_system_calls() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    const CLONE_NEWUSER: i32 = 0x1000_0000;
    let calls = [
        (format!("{},0,0,0,0", libc::SYS_keyctl), libc::EPERM),
        (format!("{},0,0,0", libc::SYS_bpf), libc::EPERM),
        (format!("{},0,0,0,0,0", libc::SYS_perf_event_open), libc::EPERM),
        (format!("{},0", libc::SYS_userfaultfd), libc::EPERM),
        (format!("{},8,0", libc::SYS_io_uring_setup), libc::EPERM),
        (format!("{},{}", libc::SYS_unshare, CLONE_NEWUSER), libc::EPERM),
        (format!("{},{}", libc::SYS_clone, CLONE_NEWUSER), libc::EPERM),
        (format!("{},0,0", libc::SYS_clone3), libc::ENOSYS),
        (format!("{},0,0", libc::SYS_setns), libc::EPERM),
        (format!("{},0,0", libc::SYS_fsopen), libc::EPERM),
        (format!("{},-1,0,0", libc::SYS_open_tree), libc::EPERM),
        (format!("{},-1,0,0", libc::SYS_open_by_handle_at), libc::EPERM),
        (format!("{},0,0,0", libc::SYS_kexec_load), libc::EPERM),
        (format!("{},0,0,0", libc::SYS_init_module), libc::EPERM),
        (format!("{},1,0,0,0,0,0", libc::SYS_process_vm_readv), libc::EPERM),
        (format!("{},0,0x5412,0", libc::SYS_ioctl), libc::EPERM),
        (format!("{},0x0400000", libc::SYS_personality), libc::EPERM),
        (format!("{},0", libc::SYS_personality), 0),
        (format!("{},40,1,0", libc::SYS_socket), libc::EAFNOSUPPORT),
        (format!("{},{},3,0", libc::SYS_socket, libc::AF_PACKET), libc::EAFNOSUPPORT),
        (format!("{},{},5,0", libc::SYS_socket, libc::AF_RDS), libc::EAFNOSUPPORT),
        (format!("{},{},5,0", libc::SYS_socket, libc::AF_TIPC), libc::EAFNOSUPPORT),
        (format!("{},{},5,0", libc::SYS_socket, libc::AF_ALG), libc::EAFNOSUPPORT),
        (format!("{},{},5,0", libc::SYS_socketpair, libc::AF_TIPC), libc::EAFNOSUPPORT),
        // The kernel's audit, and device events.
        (format!("{},{},3,9", libc::SYS_socket, libc::AF_NETLINK), libc::EAFNOSUPPORT),
        (format!("{},{},3,15", libc::SYS_socket, libc::AF_NETLINK), libc::EAFNOSUPPORT),
        (format!("{},{},3,0", libc::SYS_socket, libc::AF_NETLINK), 0),
        (format!("{},{},1,0", libc::SYS_socket, libc::AF_UNIX), 0),
        (format!("{},{},1,0", libc::SYS_socket, libc::AF_INET), 0),
        (format!("{},{},1,0", libc::SYS_socket, libc::AF_INET6), 0),
        (format!("{},1,1,0", libc::SYS_pidfd_getfd), libc::EPERM),
        ("5000".to_owned(), libc::ENOSYS),
        // getpid by the x32 convention
        ((0x4000_0000 + 39).to_string(), libc::ENOSYS),
    ];
    let arguments: Vec<&str> = calls.iter().map(|(call, _)| call.as_str()).collect();
    let argv = [&["python3", "-c", SYSTEM_CALLS][..], &arguments].concat();
    let done = crate::world::run(&sandbox, &argv).await;
    let found: Vec<i32> = done.stdout.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(found.len(), calls.len(), "{done:?}");
    for ((call, expected), found) in calls.iter().zip(found) {
        assert_eq!(found, *expected, "{call}");
    }
    sandbox.destroy().await.unwrap();
}

async fn nothing_of_the_host_is_visible() {
    let world = World::new();
    let secret = world.directory.path().join("secret");
    fs::write(&secret, "host secret").unwrap();
    let sandbox = world.sandbox().await;
    let other = world.sandbox().await;
    shell(&other, "echo of another >/workspace/theirs").await;
    for path in [
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/ssh",
        "/etc/machine-id",
        "/etc/sudoers",
        "/etc/ssl/private",
        secret.to_str().unwrap(),
        world.directory.path().to_str().unwrap(),
        "/root/.ssh",
        "/root/.bashrc",
        "/farm",
        "/workspace/theirs",
        "/var/lib/dpkg",
        "/run/sandpail/ids",
        "/old_root",
        "/etc/npmrc",
        "/etc/pip.conf",
    ] {
        let done = shell(&sandbox, &format!("ls -d {path}")).await;
        assert_ne!(done.code, 0, "{path}: {done:?}");
    }
    let done = shell(&sandbox, "ls -A /root /home /var/log /tmp /opt /srv /media /mnt | tr '\n' ' '").await;
    assert_eq!(done.stdout, "/home: sandbox  /media:  /mnt:  /opt:  /root:  /srv:  /tmp:  /var/log: ");
    // Neither paths of the host's, in the mount table.
    let state = world.directory.path().file_name().unwrap().to_str().unwrap().to_owned();
    let done =
        shell(&sandbox, &format!("cat /proc/mounts /proc/self/mountinfo /proc/self/cgroup | grep {state}")).await;
    assert_eq!((done.stdout.as_str(), done.code), ("", 1));
    // Processes: init, the shell and what it starts.
    let done = shell(&sandbox, "ls -d /proc/[0-9]* | wc -l; hostname").await;
    let (count, name) = done.stdout.trim().split_once('\n').unwrap();
    assert!(count.parse::<u32>().unwrap() <= 5, "{count}");
    assert_eq!(name, sandbox.id().as_str());
    // Network: loopback and nothing else.
    assert_eq!(shell(&sandbox, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await.stdout, "lo\n");
    assert_ne!(shell(&sandbox, "timeout 5 bash -c '</dev/tcp/169.254.169.254/80'").await.code, 0);
    // Environments of the daemon's.
    let done = shell(&sandbox, "cat /proc/*/environ | tr '\\0' '\\n' | cut -d= -f1 | sort -u | tr '\\n' ' '").await;
    assert_eq!(done.stdout, "HOME LANG LOGNAME PATH PWD SANDPAIL_COMMAND SHLVL TERM USER _ ");
    sandbox.destroy().await.unwrap();
    other.destroy().await.unwrap();
}

async fn init_is_out_of_reach() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    for line in [
        "cat /proc/1/environ",
        "head -c 1 /proc/1/mem",
        "ls /proc/1/fd/",
        "cat /proc/1/maps | grep .",
        "readlink /proc/1/exe",
        "ls /proc/1/root/",
        "ls /proc/1/cwd/",
        "cat /proc/1/auxv",
        "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).ptrace(16, 1, 0, 0) != 0)'",
    ] {
        let done = shell(&sandbox, line).await;
        assert_ne!(done.code, 0, "{line}: {done:?}");
    }
    for signal in ["KILL", "TERM", "SEGV", "STOP", "CHLD", "PIPE", "INT"] {
        shell(&sandbox, &format!("kill -{signal} 1")).await;
    }
    assert_eq!(shell(&sandbox, "echo alive").await.stdout, "alive\n");
    // Orphans are reaped.
    let done = shell(
        &sandbox,
        "for i in $(seq 50); do (sleep 0.01 & ) ; done; sleep 0.5; ps ax -o stat= 2>/dev/null | grep -c Z",
    )
    .await;
    assert_eq!(done.stdout, "0\n");
    assert!(sandbox.is_alive());
    sandbox.destroy().await.unwrap();
}

async fn files_belong_to_root_inside() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let done = shell(
        &sandbox,
        "stat -c '%n %U %a' / /usr /usr/bin/env /etc/passwd /root /tmp /workspace /home/sandbox /dev  /dev/null",
    )
    .await;
    let expected = "/ root 755\n/usr root 755\n/usr/bin/env root 755\n/etc/passwd root 644\n/root root 700\n/tmp root 1777\n\
                    /workspace root 755\n/home/sandbox sandbox 755\n/dev root 755\n/dev/null root 666\n";
    assert_eq!(done.stdout, expected);
    let before = fs::metadata("/usr/bin/env").unwrap().modified().unwrap();
    let line = "cp /bin/true /usr/bin/env && chown 1000 /usr/bin/env && mv /usr/share/doc /usr/share/doc2 && \
                rm -rf /usr/include && mkdir /usr/include && ls /usr/include && touch /etc/new && rm /etc/passwd";
    assert_eq!(shell(&sandbox, line).await.code, 0);
    assert_eq!(fs::metadata("/usr/bin/env").unwrap().modified().unwrap(), before);
    assert!(!fs::exists("/etc/new").unwrap() && fs::exists("/etc/passwd").unwrap());
    let id = sandbox.id_map();
    let upper = world.directory.path().join("state").join(sandbox.id().as_str()).join("disk/upper/root/etc/new");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(upper).unwrap()), id.base);
    sandbox.destroy().await.unwrap();
}

async fn limits_hold() {
    let world = World::new();
    let limits =
        Limits { memory: Some(96 << 20), pids: Some(30), cpus: Some(0.5), open_files: Some(64), disk: Some(64 << 20) };
    let sandbox = world.create(SandboxSpec { limits, ..SandboxSpec::default() }).await;
    let line = "python3 -c 'x = bytearray(300 << 20)'; echo $?";
    let done = shell(&sandbox, line).await;
    assert!(done.stdout.trim() == "137", "memory: {done:?}");
    let done = shell(&sandbox, "for i in $(seq 60); do sleep 5 & done; wait").await;
    assert!(done.stderr.contains("Resource temporarily unavailable") || done.stderr.contains("fork"), "pids: {done:?}");
    assert_eq!(shell(&sandbox, "ulimit -n").await.stdout, "64\n");
    let done = shell(&sandbox, "head -c 200M /dev/zero >/workspace/big").await;
    assert!(done.stderr.contains("No space left"), "disk: {done:?}");
    assert_eq!(shell(&sandbox, "rm /workspace/big; echo ok").await.stdout, "ok\n");
    sandbox.destroy().await.unwrap();
    let loops = fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .filter_map(|block| fs::read_to_string(block.path().join("loop/backing_file")).ok());
    let ours = world.directory.path().to_str().unwrap().to_owned();
    assert_eq!(loops.filter(|file| file.contains(&ours)).count(), 0);
}

async fn what_nobody_limited_is_bounded() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let files: u64 = shell(&sandbox, "ulimit -Hn").await.stdout.trim().parse().unwrap();
    assert!(files <= 65_536, "{files}");
    let done = shell(&sandbox, "df --output=size -B1 /dev/shm | tail -1").await;
    assert!(done.stdout.trim().parse::<u64>().unwrap() <= 1 << 30, "{done:?}");
    // Empty files take memory too.
    for (directory, most) in [("/dev", 1024), ("/run", 65_536), ("/dev/shm", 65_536)] {
        let done = shell(&sandbox, &format!("df --output=itotal {directory} | tail -1")).await;
        assert!(done.stdout.trim().parse::<u64>().unwrap() <= most, "{directory}: {done:?}");
    }
    let group = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    let group = group.lines().find(|line| line.contains("pids:") || line.starts_with("0::/sandpail/"));
    let limit = group.and_then(|line| {
        let path = line.rsplit_once(':')?.1;
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        roots.iter().find_map(|root| fs::read_to_string(format!("{root}{path}/pids.max")).ok())
    });
    match limit {
        Some(limit) => assert_eq!(limit.trim(), "4096"),
        None => eprintln!("skipped the limit of processes: this host has no control group for it"),
    }
    sandbox.destroy().await.unwrap();
}

/// Tries all ways to another limit of core files and prints what it is then.
const CORE: &str = "
import resource as r
before = r.getrlimit(r.RLIMIT_CORE)
for new in [(0, 0), (0, 1), (r.RLIM_INFINITY, r.RLIM_INFINITY)]:
    r.setrlimit(r.RLIMIT_CORE, new)
    r.prlimit(0, r.RLIMIT_CORE, new)
print(before, r.getrlimit(r.RLIMIT_CORE), r.prlimit(0, r.RLIMIT_CORE))
r.setrlimit(r.RLIMIT_NOFILE, (10, 20))
print(r.getrlimit(r.RLIMIT_NOFILE))
";

async fn no_core_goes_to_a_program_of_the_host() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let done = crate::world::run(&sandbox, &["python3", "-c", CORE]).await;
    assert_eq!(done.stdout, "(1, 1) (1, 1) (1, 1)\n(10, 20)\n", "{done:?}");
    let done = shell(&sandbox, "ulimit -c unlimited; sh -c 'kill -SEGV $$'; ls -A").await;
    assert_eq!((done.stdout.as_str(), done.code), ("", 0), "{done:?}");
    sandbox.destroy().await.unwrap();
}

async fn hidden_directories_have_no_other_names() {
    let world = World::new();
    let top = world.directory.path().canonicalize().unwrap();
    fs::create_dir_all(top.join("host/secret")).unwrap();
    fs::write(top.join("host/secret/key"), "key").unwrap();
    fs::write(top.join("host/tool"), "tool").unwrap();
    std::os::unix::fs::symlink(top.join("host"), top.join("alias")).unwrap();
    let options = sandpail_sandbox::RuntimeOptions {
        state_dir: top.join("state"),
        program: std::env::current_exe().unwrap(),
        hidden: vec![top.join("alias/secret")],
    };
    let runtime = sandpail_sandbox::Runtime::new(options).unwrap();
    for shown in ["host", "alias"] {
        let shown = top.join(shown);
        let spec = SandboxSpec { expose: vec![shown.clone()], ..SandboxSpec::default() };
        let sandbox = runtime.create(crate::world::new_id(), spec).await.unwrap();
        let shown = shown.display();
        let done = shell(&sandbox, &format!("cat {shown}/tool; ls -A {shown}/secret")).await;
        assert_eq!((done.stdout.as_str(), done.code), ("tool", 0), "{done:?}");
        sandbox.destroy().await.unwrap();
    }
    let rootfs = sandpail_sandbox::RootFs::Directory(top.join("alias"));
    let sandbox =
        runtime.create(crate::world::new_id(), SandboxSpec { rootfs, ..SandboxSpec::default() }).await.unwrap();
    let listed = sandbox.list_files(std::path::Path::new("/secret"), Default::default()).await.unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    sandbox.destroy().await.unwrap();
    for shown in ["host/secret", "alias/secret", "state"] {
        let spec = SandboxSpec { expose: vec![top.join(shown)], ..SandboxSpec::default() };
        let error = runtime.create(crate::world::new_id(), spec).await.unwrap_err();
        assert!(error.to_string().contains("hidden"), "{shown}: {error}");
    }
}

async fn output_can_be_opened_by_name() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let line = "echo out >/dev/stdout; echo err >/dev/stderr; echo more | tee /dev/stderr >/dev/null; cat </dev/stdin";
    let done = shell(&sandbox, line).await;
    assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.code), ("out\n", "err\nmore\n", 0));
    let argv = crate::world::words(&["sh", "-c", "cat /dev/stdin"]);
    let spec = sandpail_sandbox::ExecSpec { argv, stdin: "in".into(), ..Default::default() };
    assert_eq!(crate::world::exec(&sandbox, spec).await.unwrap().stdout, "in");
    // Terminals too.
    let spec = sandpail_sandbox::PtySpec { cols: 80, rows: 24, shell: Some("sh".to_owned()), session: None };
    let mut pty = sandbox.open_pty(spec).await.unwrap();
    let typed = "echo 1$((1+1))3 >/dev/stderr; echo x >/dev/tty && exit\n";
    pty.input.send(sandpail_sandbox::PtyInput::Bytes(typed.into())).await.unwrap();
    let mut shown = String::new();
    loop {
        match pty.output.recv().await.unwrap() {
            sandpail_sandbox::PtyEvent::Output(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            sandpail_sandbox::PtyEvent::Ready => {}
            sandpail_sandbox::PtyEvent::Exit { code, .. } => {
                assert_eq!(code, 0, "{shown}");
                break;
            }
        }
    }
    assert!(shown.contains("123"), "{shown}");
    sandbox.destroy().await.unwrap();
}

async fn children_left_behind_take_few_descriptors() {
    /// Each leaves two pipes.
    const COUNT: usize = 120;
    let world = World::new();
    let sandbox = world.sandbox().await;
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    let commands = (0..COUNT).map(|_| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move { assert_eq!(shell(&sandbox, "sleep 1000 & echo").await.code, 0) })
    });
    for command in commands.collect::<Vec<_>>() {
        command.await.unwrap();
    }
    // What is closed is so soon, and not at once.
    for _ in 0..500 {
        if count() <= before + 128 + 10 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(count() <= before + 128 + 10, "{before} before, {}", count());
    assert_eq!(shell(&sandbox, "pgrep -c sleep").await.stdout.trim(), COUNT.to_string(), "they live");
    sandbox.destroy().await.unwrap();
}

async fn what_is_exposed_is_read_only() {
    let world = World::new();
    let tool = world.directory.path().join("tool");
    fs::create_dir(&tool).unwrap();
    fs::write(tool.join("file"), "tool").unwrap();
    let path = tool.display().to_string();
    let sandbox = world.create(SandboxSpec { expose: vec![tool.clone()], ..SandboxSpec::default() }).await;
    assert_eq!(shell(&sandbox, &format!("cat {path}/file")).await.stdout, "tool");
    assert_ne!(shell(&sandbox, &format!("echo x >{path}/file || rm {path}/file")).await.code, 0);
    assert_ne!(shell(&sandbox, &format!("ls {path}/../state")).await.code, 0);
    sandbox.destroy().await.unwrap();
    assert_eq!(fs::read_to_string(tool.join("file")).unwrap(), "tool");
    // A root file system of one's own.
    let sandbox =
        world.create(SandboxSpec { rootfs: sandpail_sandbox::RootFs::Directory(tool), ..SandboxSpec::default() }).await;
    let done = crate::world::run(&sandbox, &["ls", "/"]).await;
    assert_eq!((done.stderr.as_str(), done.code), ("ls: command not found\n", 127));
    sandbox.destroy().await.unwrap();
}
