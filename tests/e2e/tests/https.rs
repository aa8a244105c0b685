//! Stores behind TLS: who is trusted, and what is said when nobody is.

use anyhow::Result;
use sandpail_e2e::{ServerKind, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("https::certificates", certificates).on(&[ServerKind::Embedded]),
    Test::new("https::everyday", everyday).on(&[ServerKind::Embedded]),
];

/// Makes an authority and certificates; `serve NAME` ends TLS in front of the server and sets `URL`.
const PRELUDE: &str = r#"
    trap 'for pid in ${SERVERS:-}; do kill $pid; done; "$SANDPAIL" umount mnt 2>/dev/null || true' EXIT
    new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    openssl req -x509 $new_key -days 2 -subj /CN=authority -keyout ca.key -out ca.pem 2>/dev/null
    certificate() {
        openssl req $new_key -subj /CN=server -keyout "$1.key" -out "$1.csr" 2>/dev/null; echo "subjectAltName=$2" >"$1.ext"
        openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days "$3" -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    }
    serve() {
        "$PYTHON" "$E2E/tests/tls.py" "$1.pem" "$1.key" "${ENDPOINT##*:}" "$1.port" 2>"$1.log" & SERVERS="${SERVERS:-} $!"
        for n in $(seq 300); do [ -e "$1.port" ] && break; sleep 0.1; done; URL="https://localhost:$(cat "$1.port")"
    }
    mount() { "$SANDPAIL" mount --endpoint "$URL" --region us-east-1 --path-style "$BUCKET" mnt "$@"; }
    refused() {
        fails mount "${@:2}" 2>err; [ "$(wc -l <err)" = 1 ] || { cat err >&2; return 1; }
        grep -qi "$1" err || { cat err >&2; return 1; }; fails mountpoint -q mnt
    }
    mkdir mnt
"#;

fn certificates(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        certificate good DNS:localhost 2; certificate other DNS:other.invalid 2; certificate old DNS:localhost -1
        serve good
        mount --ca-file ca.pem; echo x >mnt/a; [ "$(cat mnt/a)" = x ]; "$SANDPAIL" umount mnt
        refused 'certificate.*--ca-file'; refused 'no-such.pem' --ca-file no-such.pem; refused 'good.key' --ca-file good.key
        serve other
        refused 'certificate.*localhost' --ca-file ca.pem
        mount --insecure; [ "$(cat mnt/a)" = x ]; "$SANDPAIL" umount mnt
        serve old
        refused 'certificate.*expired' --ca-file ca.pem
    "#;
    world.script_in(&world.local(), &format!("{PRELUDE}{script}"))?.run()?;
    Ok(())
}

fn everyday(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        certificate good DNS:localhost 2; serve good; mount --ca-file ca.pem
        head -c 40000000 /dev/urandom >big; cp big mnt/big; cmp big mnt/big
        dd if=/dev/zero of=mnt/big bs=1000 seek=20000 count=3 conv=notrunc status=none
        dd if=/dev/zero of=big bs=1000 seek=20000 count=3 conv=notrunc status=none; cmp big mnt/big
        mkdir mnt/d; for n in $(seq 40); do echo $n >mnt/d/$n; done; mv mnt/d mnt/e; [ "$(cat mnt/e/* | wc -l)" = 40 ]
        "$SANDPAIL" umount mnt; mount --ca-file ca.pem; cmp big mnt/big; [ "$(ls mnt/e | wc -l)" = 40 ]; "$SANDPAIL" umount mnt
    "#;
    world.script_in(&world.local(), &format!("{PRELUDE}{script}"))?.run()?;
    Ok(())
}
