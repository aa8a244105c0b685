"""What becomes of S3 clients when their mount goes, and when the daemon does.

    proxy_revoked.py before|after
"""

import json
import os
import pathlib
import sys

from client import Api, Checks, until

BUCKET, KEYS = os.environ["BUCKET"], {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}
SIGN = """curl -sS --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' """
KEPT = pathlib.Path("revoked.json")
api, checks = Api(), Checks()
true, equal = checks.true, checks.equal


def status(box, url):
    return api.sh(box, SIGN + f"-o /dev/null -w '%{{http_code}}' {url}")


def revoked(_):
    box = api.create()
    api.mount(box, "/data", binding="MY_BUCKET")
    api.mount(box, "/other", binding="SECOND")
    api.sh(box, "head -c 150000000 /dev/urandom >/data/large; echo x >/other/x")
    url = "$AWS_ENDPOINT_URL_S3/my-r2-bucket/large"
    equal("before", status(box, url), "200")
    # A download that takes a minute, and a connection that stays open between requests.
    api.must("POST", f"/v1/sandbox/{box}/processes", {"processId": "slow", "argv": ["bash", "-c", SIGN + f"--limit-rate 3M -o /workspace/got {url}; echo curl=$?"]})
    until("the download has begun", lambda: api.exec(box, "test", "-s", "/workspace/got").code == 0)
    api.unmount(box, "/data")
    ended = until("the download ends", lambda: (one := api.must("GET", f"/v1/sandbox/{box}/processes/slow").json())["status"] != "running" and one, 10)
    logs = api.must("GET", f"/v1/sandbox/{box}/processes/slow/logs").json()
    true("it was cut", "curl=0" not in logs["stdout"] and "curl=" in logs["stdout"], (ended, logs))
    equal("after the unmount", status(box, url), "403")
    equal("another mount goes on", status(box, "$AWS_ENDPOINT_URL_S3/second/x"), "200")
    before = {one["mountId"] for one in api.mounts(box)}
    api.mount(box, "/data", binding="MY_BUCKET", options={"readOnly": True})
    new = next(one["mountId"] for one in api.mounts(box) if one["mountPath"] == "/data")
    true("a new mount has a new id", new not in before)
    equal("mounted again", status(box, url), "200")
    equal("read-only now", api.sh(box, SIGN + f"-o /dev/null -w '%{{http_code}}' -T /etc/hostname {url}-new"), "403")
    api.destroy(box)


def prepare(_):
    box = api.create()
    api.mount(box, "/data", binding="MY_BUCKET", options={"prefix": "/kept/"})
    api.mount(box, "/remote", bucket=BUCKET, options={"endpoint": os.environ["ENDPOINT"], "credentials": KEYS, "credentialProxy": True, "prefix": "/kept/"})
    api.sh(box, "echo one >/data/x; echo two >/remote/x")
    mount = next(one["mountId"] for one in api.mounts(box) if one["mountPath"] == "/remote")
    api.must("PUT", f"/v1/sandbox/{box}/egress", {"allowedHosts": ["api.example.com"], "outboundByHost": {"api.example.com": {"headers": {"x-token": "kept-by-the-daemon"}}}})
    # A session that keeps its variables, and so its key.
    api.exec(box, "true", session="s")
    KEPT.write_text(json.dumps({"box": box, "mount": mount, "key": api.sh(box, "echo $AWS_SECRET_ACCESS_KEY")}))


def again(_):
    kept = json.loads(KEPT.read_text())
    box = kept["box"]
    equal("the same key", api.sh(box, "echo $AWS_SECRET_ACCESS_KEY"), kept["key"])
    equal("a binding", api.sh(box, SIGN + "$AWS_ENDPOINT_URL_S3/my-r2-bucket/kept/x"), "one\n")
    equal("an endpoint, whose keys only its process had", api.sh(box, SIGN + f"http://s3-credential-proxy.internal/{kept['mount']}/{BUCKET}/kept/x"), "two\n")
    equal("over TLS", api.sh(box, SIGN + "https://s3.internal/my-r2-bucket/kept/x"), "one\n")
    equal("in a session", api.exec(box, "bash", "-c", SIGN + "$AWS_ENDPOINT_URL_S3/my-r2-bucket/kept/x", session="s").out, b"one\n")
    policy = api.must("GET", f"/v1/sandbox/{box}/egress").json()
    equal("the policy", (policy["allowedHosts"], policy["outboundByHost"]["api.example.com"]["headers"]), (["api.example.com"], {"x-token": "***"}))
    state = pathlib.Path(os.environ["STATE"], "network")
    equal("what is kept is root's", [oct(path.stat().st_mode & 0o777) for path in state.iterdir()], ["0o600"])
    api.destroy(box)
    equal("and goes with the sandbox", list(state.iterdir()), [])


for part in [revoked, prepare] if sys.argv[1] == "before" else [again]:
    checks.section(part, None)
checks.end()
