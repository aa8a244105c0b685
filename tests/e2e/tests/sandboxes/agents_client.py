"""The Cloudflare sandbox client of `openai-agents`, as published, on our server. No model is called."""

import asyncio
import io
import os
import pathlib
import tarfile
import tempfile

import boto3
from agents.extensions.sandbox.cloudflare import CloudflareBucketMountStrategy, CloudflareSandboxClient, CloudflareSandboxClientOptions
from agents.sandbox import LocalSnapshot, Manifest
from agents.sandbox.entries import Dir, File, GCSMount, R2Mount, S3Mount
from agents.sandbox.errors import ExecTimeoutError, MountConfigError, WorkspaceArchiveReadError, WorkspaceReadNotFoundError
from agents.sandbox.manifest import Environment
from agents.sandbox.util.tar_utils import validate_tar_bytes
from botocore.config import Config

from client import Api, until

URL, ENDPOINT, BUCKET = (os.environ[name] for name in ("SANDPAIL_URL", "ENDPOINT", "BUCKET"))
ACCESS_KEY, SECRET_KEY = os.environ["ACCESS_KEY"], os.environ["SECRET_KEY"]
KEY = open(os.environ["SANDPAIL_KEY_FILE"]).read().strip()
api = Api()
s3 = boto3.client("s3", endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
                  config=Config(s3={"addressing_style": "path"}))


def get(key):
    return s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def s3_mount(**more):
    return S3Mount(bucket=BUCKET, endpoint_url=ENDPOINT, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, mount_strategy=CloudflareBucketMountStrategy(), **more)


def r2_mount(**more):
    # The account is only a name here: the endpoint is ours, and the keys are found by the server.
    return R2Mount(bucket=BUCKET, account_id="account", custom_domain=ENDPOINT, mount_strategy=CloudflareBucketMountStrategy(), **more)


async def raises(kind, call, *texts):
    try:
        await call
    except kind as error:
        told = f"{error} {getattr(error, 'context', '')} {error.__cause__}"
        assert all(text in told for text in texts), told
        return error
    raise AssertionError(f"no {kind.__name__}")


async def text(session, path):
    return (await session.read(path)).read().decode()


async def commands(session):
    result = await session.exec("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n"), result
    result = await session.exec("printf", "%s|", "a b", "$HOME", "", "é", shell=False)
    assert result.stdout.decode() == "a b|$HOME||é|", result
    result = await session.exec('echo "$FROM_MANIFEST"; pwd')
    assert result.stdout == b"a value\n/workspace\n", result
    result = await session.exec("no-such-program", shell=False)
    assert result.exit_code == 127, result
    result = await session.exec("sleep 20", timeout=0.4)
    assert result.exit_code == 124 and b"Command timed out after 400ms" in result.stderr, result
    results = await asyncio.gather(*(session.exec(f"echo {n}; sleep 0.1") for n in range(8)))
    assert [r.stdout for r in results] == [f"{n}\n".encode() for n in range(8)]
    result = await session.exec("cat /proc/self/environ /proc/1/environ; env")
    assert SECRET_KEY.encode() not in result.stdout


async def files(session):
    data = bytes(range(256)) * 4000
    await session.write(pathlib.Path("deep/er/bytes.bin"), io.BytesIO(data))
    assert (await session.read(pathlib.Path("deep/er/bytes.bin"))).read() == data
    await session.write(pathlib.Path("/workspace/na me é#1.txt"), io.BytesIO(b"named"))
    assert await text(session, pathlib.Path("na me é#1.txt")) == "named"
    # Content that looks like the stream of older servers must come back as it is.
    await session.write(pathlib.Path("stream.txt"), io.BytesIO(b'data: {"type":"other"}\n\n'))
    assert await text(session, pathlib.Path("stream.txt")) == 'data: {"type":"other"}\n\n'
    await raises(WorkspaceReadNotFoundError, session.read(pathlib.Path("none.txt")))
    await raises(WorkspaceArchiveReadError, session.read(pathlib.Path("deep")), "read failed")
    await session.exec("ln -s /etc/passwd out-link")
    await raises(Exception, session.read(pathlib.Path("out-link")), "escape")
    await session.mkdir("made/by/client", parents=True)
    await session.mv("na me é#1.txt", "made/moved.txt")
    listed = {entry.path.rpartition("/")[2]: entry.kind.name for entry in await session.ls("made")}
    assert listed == {"by": "DIRECTORY", "moved.txt": "FILE"}, listed
    await session.rm("made", recursive=True)
    await raises(Exception, session.ls("made"))


async def terminal(session):
    update = await session.pty_exec_start("read line; echo got:$line; exit 5", tty=True, yield_time_s=0.5)
    assert update.process_id is not None, update
    update = await session.pty_write_stdin(session_id=update.process_id, chars="typed\n", yield_time_s=3)
    shown = update.output
    if update.process_id is not None:
        update = await session.pty_write_stdin(session_id=update.process_id, chars="exit\n", yield_time_s=3)
        shown += update.output
    assert b"got:typed" in shown, shown
    await session.pty_terminate_all()


async def main(snapshots):
    for key, body in [("data/in/one.txt", b"1"), ("data/two.txt", b"2"), ("data-else/three.txt", b"3")]:
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    client = CloudflareSandboxClient()
    options = CloudflareSandboxClientOptions(worker_url=URL, api_key=KEY)
    wrong = CloudflareSandboxClientOptions(worker_url=URL, api_key="wrong")
    await raises(Exception, client.create(options=wrong, manifest=Manifest()), "401", "unauthorized: Unauthorized")

    manifest = Manifest(
        environment=Environment(value={"FROM_MANIFEST": "a value"}),
        entries={
            "notes.txt": File(content=b"from the manifest"),
            "project": Dir(children={"a.py": File(content=b"print('a')"), "sub": Dir(children={"b.txt": File(content=b"b")})}),
            "scratch.txt": File(content=b"not kept", ephemeral=True),
            "mnt/input": s3_mount(prefix="data"),
            "mnt/output": s3_mount(prefix="/results/", read_only=False),
            "all": r2_mount(read_only=False),
        },
    )
    snapshot = LocalSnapshot(id="kept", base_path=snapshots)
    session = await client.create(manifest=manifest, options=options, snapshot=snapshot)
    await session.start()
    sandbox = session.state.sandbox_id
    assert await session.running()
    assert await text(session, pathlib.Path("notes.txt")) == "from the manifest"
    assert (await session.exec("python3 project/a.py; cat project/sub/b.txt")).stdout == b"a\nb"

    await commands(session)
    await files(session)
    await terminal(session)

    # Mounts of the manifest: read-only and not, with and without prefix.
    assert (await session.exec("find mnt/input -type f | sort")).stdout == b"mnt/input/in/one.txt\nmnt/input/two.txt\n"
    result = await session.exec("echo x >mnt/input/new")
    assert result.exit_code != 0 and b"Read-only file system" in result.stderr, result
    await session.exec("mkdir -p mnt/output/run && python3 -c 'print(6*7)' >mnt/output/run/answer.txt")
    assert get("results/run/answer.txt") == b"42\n"
    await session.write(pathlib.Path("mnt/output/written.bin"), io.BytesIO(b"by the file route"))
    assert get("results/written.bin") == b"by the file route"
    assert await text(session, pathlib.Path("all/data-else/three.txt")) == "3"
    await raises(Exception, session.write(pathlib.Path("mnt/input/no.txt"), io.BytesIO(b"x")), "Read-only filesystem")

    # A mount that is applied later, by its strategy; every call of the strategy.
    for mount in [s3_mount(prefix="later", read_only=False), r2_mount(read_only=False),
                  GCSMount(bucket=BUCKET, endpoint_url=ENDPOINT, access_id=ACCESS_KEY, secret_access_key=SECRET_KEY, prefix="later",
                           read_only=False, mount_strategy=CloudflareBucketMountStrategy())]:
        inner, base, dest = session._inner, pathlib.Path("/"), pathlib.Path("late/mount")
        await mount.mount_strategy.activate(mount, inner, dest, base)
        assert (await session.exec("echo late >late/mount/x && cat late/mount/x")).stdout == b"late\n"
        await raises(MountConfigError, mount.mount_strategy.activate(mount, inner, dest, base))
        await mount.mount_strategy.teardown_for_snapshot(mount, inner, pathlib.Path("/workspace/late/mount"))
        assert (await session.exec("ls -A late")).stdout == b""
        await mount.mount_strategy.restore_after_snapshot(mount, inner, pathlib.Path("/workspace/late/mount"))
        assert (await session.exec("cat late/mount/x")).stdout == b"late\n"
        await mount.mount_strategy.deactivate(mount, inner, dest, base)
        await raises(MountConfigError, mount.mount_strategy.deactivate(mount, inner, dest, base))
        await session.exec("rm -r late")
    assert get("later/x") == b"late\n"
    absent = s3_mount()
    absent.bucket = "no-such-bucket"
    await raises(MountConfigError, absent.mount_strategy.activate(absent, session._inner, pathlib.Path("none"), pathlib.Path("/")))

    # Persist takes the mounts away and brings them back; what is in buckets is not in the archive.
    await session.exec("rm -f out-link; chmod 700 project; ln project/a.py hard.py; ln -s project/a.py soft.py; echo hid >.hidden")
    archive = (await session.persist_workspace()).read()
    # What the client itself checks before it hydrates, with its reason.
    validate_tar_bytes(archive, allow_external_symlink_targets=False)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"notes.txt", "project/a.py", ".hidden", "hard.py", "soft.py", "deep/er/bytes.bin"} <= names, names
    assert not any("answer" in name or name in ("scratch.txt", "all/data/two.txt") for name in names), names
    assert (await session.exec("cat mnt/output/run/answer.txt all/data/two.txt")).stdout == b"42\n2", "the mounts are not back"
    await session.exec("rm -r project; echo changed >notes.txt; echo more >more.txt")
    await session.hydrate_workspace(io.BytesIO(archive))
    assert (await session.exec("cat notes.txt more.txt project/sub/b.txt; stat -c %a project")).stdout == b"from the manifestmore\nb700\n"
    assert (await session.exec("cat mnt/output/run/answer.txt")).stdout == b"42\n", "the mounts are not back"

    # Stop stores a snapshot; a new sandbox starts from it.
    await session.stop()
    await client.delete(session)
    until("the sandbox is gone", lambda: sandbox not in api.sandboxes())
    assert get("results/run/answer.txt") == b"42\n", "the bucket lost its data"
    session = await client.create(manifest=manifest, options=options, snapshot=snapshot)
    await session.start()
    assert session.state.sandbox_id != sandbox
    assert (await session.exec("cat more.txt .hidden hard.py soft.py; cat mnt/output/run/answer.txt")).stdout == b"more\nhid\nprint('a')print('a')42\n"
    await session.stop()
    await client.delete(session)

    # A session without mounts may be resumed, also by another client, and finds its workspace.
    plain = Manifest(entries={"f.txt": File(content=b"first")})
    session = await client.create(manifest=plain, options=options, snapshot=LocalSnapshot(id="plain", base_path=snapshots))
    await session.start()
    await session.exec("echo second >f.txt; echo own >g.txt")
    await session.stop()
    state = client.deserialize_session_state(session.state.model_dump(mode="json"))
    os.environ["CLOUDFLARE_SANDBOX_API_KEY"] = KEY
    resumed = await CloudflareSandboxClient().resume(state)
    await resumed.start()
    assert (await resumed.exec("cat f.txt g.txt")).stdout == b"second\nown\n"
    await client.delete(resumed)
    # And one whose sandbox is gone is made again from its snapshot.
    resumed = await CloudflareSandboxClient().resume(client.deserialize_session_state(session.state.model_dump(mode="json")))
    await resumed.start()
    assert (await resumed.exec("cat f.txt g.txt")).stdout == b"second\nown\n"
    await client.delete(resumed)
    assert not await resumed.running()
    await resumed._inner._close_http()
    assert not api.sandboxes(), api.sandboxes()
    print("all of the client works")


with tempfile.TemporaryDirectory() as directory:
    asyncio.run(main(pathlib.Path(directory)))
