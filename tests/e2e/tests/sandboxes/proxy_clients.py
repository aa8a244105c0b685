"""Unmodified S3 clients in sandboxes, by every name that a bucket has there; and their keys outside.

    proxy_clients.py STORE LARGE

STORE is a name of the store's host that only the daemon knows; LARGE the length of the largest object in bytes.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.parse

import boto3
import botocore.exceptions
from botocore.config import Config
from client import Api, Checks, Failed

STORE, LARGE = sys.argv[1], int(sys.argv[2])
PORT = urllib.parse.urlsplit(os.environ["ENDPOINT"]).port
BUCKET, KEYS = os.environ["BUCKET"], {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}
INSIDE = pathlib.Path(os.environ["REPO"], ".tools/inside").resolve()
SCRIPT = pathlib.Path(os.environ["SCRIPTS"], "proxy_inside.py").read_bytes()
api, checks = Api(), Checks()
true, equal = checks.true, checks.equal


def run(box, targets, only=()):
    """Runs the clients in a sandbox."""
    asked = json.dumps({"targets": targets, "large": LARGE, "only": list(only)})
    api.put(box, "/workspace/clients.py", SCRIPT)
    done = api.exec(box, "/usr/bin/python3", "/workspace/clients.py", asked, env={"PYTHONPATH": str(INSIDE), "PYTHONDONTWRITEBYTECODE": "1"}, timeout_ms=900_000)
    print(done.out.decode(errors="replace"), end="")
    true(f"clients at {[name for name, *_ in targets]}", done.code == 0, (done.out.decode(errors="replace")[-500:], done.err.decode(errors="replace")[-3000:]))


def with_env(box):
    out = api.sh(box, "env -0").split("\0")
    return dict(line.split("=", 1) for line in out if "=" in line)


def everything(box):
    """What a guest finds when it looks for keys of the store."""
    found = api.sh(box, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /run/sandpail/* /root/.aws/* /etc/hosts /etc/resolv.conf 2>/dev/null | tr '\\0' '\\n' || true; env; mount")
    return [name for name, key in KEYS.items() if key in found]


def bindings(_):
    box = api.create()
    api.mount(box, "/data", binding="MY_BUCKET", options={"prefix": "/part/"})
    api.mount(box, "/remote", binding="REMOTE")
    run(box, [["an embedded bucket", "http://s3.internal", "my-r2-bucket", "part/"], ["the same over TLS", "https://s3.internal", "MY_BUCKET", "part/"]])
    run(box, [["a binding", "http://r2.internal", "MY_BUCKET", ""], ["a binding on a server", "https://r2.internal", "REMOTE", "of-binding/"], ["a server by its bucket", "http://s3.internal", BUCKET, "of-bucket/"]], ["with_boto3", "with_pyarrow"])
    # What a client stores is in the directory, and the other way round.
    api.sh(box, "echo from the mount >/data/both")
    env = with_env(box)
    sign = """curl -sS --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' """
    equal("a client reads what the mount wrote", api.sh(box, sign + "$AWS_ENDPOINT_URL_S3/my-r2-bucket/part/both"), "from the mount\n")
    api.sh(box, sign + "-T /data/both $AWS_ENDPOINT_URL_S3/my-r2-bucket/part/copy && grep -q mount /data/copy")
    equal("keys of the store inside", everything(box), [])
    for name in ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"]:
        equal(name, env.get(name), "/etc/ssl/certs/ca-certificates.crt")
    true("the authority's key is not inside", "PRIVATE KEY" not in api.sh(box, "cat /etc/ssl/certs/ca-certificates.crt; grep -rl 'PRIVATE KEY' /etc /run /tmp /root 2>/dev/null || true"))
    equal("the self test", api.sh(box, "curl -sS http://s3-credential-proxy.internal/__sandbox_credential_proxy_self_test__"), "OK")
    # The same key elsewhere: at the store itself, and in another sandbox.
    dummy = {"aws_access_key_id": env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"], "region_name": "us-east-1"}
    try:
        boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], config=Config(retries={"max_attempts": 0}), **dummy).list_objects_v2(Bucket=BUCKET)
        true("a dummy key at the store", False, "it was taken")
    except botocore.exceptions.ClientError as error:
        true("a dummy key at the store", error.response["ResponseMetadata"]["HTTPStatusCode"] == 403, error.response)
    other = api.create()
    api.mount(other, "/data", binding="MY_BUCKET", options={"prefix": "/part/"})
    code = api.sh(other, sign.replace("$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY", f"{env['AWS_ACCESS_KEY_ID']}:{env['AWS_SECRET_ACCESS_KEY']}") + "-o /dev/null -w '%{http_code}' $AWS_ENDPOINT_URL_S3/my-r2-bucket/part/both")
    equal("a dummy key of another sandbox", code, "403")
    counted = next(one for one in api.mounts(box) if one["mountPath"] == "/data")["proxy"]
    true("requests are counted", counted["requests"] > 100 and counted["bytesIn"] > LARGE and counted["bytesOut"] > LARGE, counted)
    for one in [box, other]:
        api.destroy(one)


def endpoints(_):
    box = api.create()
    endpoint = f"http://{STORE}:{PORT}"
    api.mount(box, "/data", bucket=BUCKET, options={"endpoint": endpoint, "credentials": KEYS, "credentialProxy": True, "prefix": "/mine/"})
    api.mount(box, "/plain", bucket=BUCKET, options={"endpoint": endpoint, "credentials": KEYS, "prefix": "/plain/"})
    [mount] = [one for one in api.mounts(box) if one["mode"] == "endpoint-proxy"]
    name = mount["mountId"]
    run(box, [["a mount's host", f"http://{name}.s3-credential-proxy.internal", BUCKET, "mine/"], ["the store's own name over TLS", f"https://{STORE}", BUCKET, "mine/"]])
    run(box, [["a mount's path", f"http://s3-credential-proxy.internal/{name}", BUCKET, "mine/"], ["the store's own address", endpoint, BUCKET, "mine/"]], ["with_boto3"])
    equal("keys of the store inside", everything(box), [])
    api.sh(box, "echo x >/plain/x")
    sign = """curl -sS -o /dev/null -w '%{http_code}' --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' """
    equal("a mount without the proxy", api.sh(box, sign + f"$AWS_ENDPOINT_URL_S3/{BUCKET}/plain/x"), "403")
    log = pathlib.Path(os.environ["LOG"]).read_text()
    true("each request is in the log", len(re.findall(r"sandpail::audit.*PutObject", log)) > 10)
    equal("no key is in the log", [word for word in [*KEYS.values(), with_env(box)["AWS_SECRET_ACCESS_KEY"]] if word in log], [])
    api.destroy(box)


S3FS = r"""
mount --bind "$1" /etc/resolv.conf
mount --bind "$2" /etc/ssl/certs/ca-certificates.crt
umask 077; mkdir mnt; printf '%s:%s' "$ID" "$SECRET" >passwd
for url in http://s3.internal https://s3.internal; do
    s3fs "$3:/of-s3fs" mnt -f -o "passwd_file=passwd,url=$url,use_path_request_style,multipart_size=10,complement_stat" >log 2>&1 & s3fs=$!
    for n in $(seq 100); do mountpoint -q mnt && break; sleep 0.1; done
    mountpoint -q mnt || { cat log; exit 1; }
    head -c 25000000 /dev/urandom >large; cp large mnt/large; cmp large mnt/large
    mkdir mnt/dir; echo one >mnt/dir/a; mv mnt/dir/a mnt/dir/b; chmod 640 mnt/dir/b; ln -s dir/b mnt/link
    test "$(cat mnt/link)" = one; test "$(stat -c %a mnt/dir/b)" = 640; echo two >>mnt/dir/b
    test "$(ls mnt | tr '\n' ' ')" = "dir large link "; rm -r mnt/dir mnt/large mnt/link; test -z "$(ls -A mnt)"
    umount mnt; wait $s3fs
done
"""


def s3fs(_):
    """A stock s3fs, which no sandbox may mount: it runs in the sandbox's network, with what its environment says."""
    box = api.create()
    api.mount(box, "/remote", binding="REMOTE")
    api.sh(box, "mkdir /remote/of-s3fs")
    api.put(box, "/workspace/name", box.encode())
    env = with_env(box)
    init = None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if re.search(r"NSpid:\t\d+\t1$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M) and pathlib.Path(f"/proc/{pid}/root/workspace/name").read_text() == box:
                init = pid
        except OSError:
            continue
    true("the sandbox's init is found", init is not None)
    with tempfile.TemporaryDirectory() as work:
        for name in ["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"]:
            pathlib.Path(work, os.path.basename(name)).write_bytes(pathlib.Path(f"/proc/{init}/root", name).read_bytes())
        command = ["nsenter", f"--net=/proc/{init}/ns/net", "unshare", "--mount", "--propagation", "private", "bash", "-euxc", S3FS, "s3fs", f"{work}/resolv.conf", f"{work}/ca-certificates.crt", BUCKET]
        done = subprocess.run(command, cwd=work, env={"PATH": os.environ["PATH"], "ID": env["AWS_ACCESS_KEY_ID"], "SECRET": env["AWS_SECRET_ACCESS_KEY"]}, capture_output=True, text=True, timeout=120)
        true("s3fs", done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:]))
    api.destroy(box)


def main():
    for part in [bindings, endpoints, s3fs]:
        checks.section(part, None)
    checks.end()


try:
    main()
except Failed as failure:
    sys.exit(str(failure))
