//! What comes before a mount: the examination of a bucket, and where keys come from.

use anyhow::{Result, ensure};
use sandpail_e2e::{ServerKind, Test, World, on_peer};

const EMBEDDED: &[ServerKind] = &[ServerKind::Embedded];

pub(crate) const TESTS: &[Test] = &[
    Test::new("set_up::doctor", doctor),
    Test::new("set_up::doctor_finds_what_is_wrong", doctor_finds).on(EMBEDDED),
    Test::new("set_up::keys_of_a_profile", profile).on(EMBEDDED),
    Test::new("set_up::keys_that_expire", expiring).on(EMBEDDED),
];

/// Writes, sees what the provider does, keeps that for mounts, and leaves nothing in the bucket.
fn doctor(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        profile=/var/lib/sandpail/providers/$(echo "${ENDPOINT#http://}" | tr : _).json
        mkdir -p mnt; trap '"$SANDPAIL" umount mnt 2>/dev/null || true; rm -f "$profile"' EXIT
        "$SANDPAIL" doctor --endpoint "$ENDPOINT" --region us-east-1 --bucket "$BUCKET" --write-probe >out
        for what in FUSE resolve connect 'sign and list' clock write 'conditional writes' 'unequal parts' 'part copy' \
            checksums 'list version 2' 'encoded listings' 'clean up' 'provider profile'; do
            grep -q "^ok  *$what  " out || { echo "no ok for $what"; cat out; exit 1; }
        done
        grep -q '"endpoint": "'"$ENDPOINT"'"' "$profile"
        fails grep -q "$AWS_SECRET_ACCESS_KEY" out "$profile"
        "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt
        [ -z "$(ls -A mnt)" ]; echo x >mnt/a; "$SANDPAIL" umount mnt
        echo garbage >"$profile"
        fails "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt 2>err; grep -q "$profile" err
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

fn doctor_finds(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        doctor() { fails "$SANDPAIL" doctor --region us-east-1 "$@" >out; grep FAIL out; }
        doctor --endpoint http://no-such-host.invalid --bucket "$BUCKET" | grep -q 'resolve.*no-such-host.invalid'
        doctor --endpoint http://127.0.0.1:1 --bucket "$BUCKET" | grep -q 'connect.*127.0.0.1:1'
        doctor --endpoint "${ENDPOINT/http:/https:}" --bucket "$BUCKET" | grep -q TLS
        doctor --endpoint "$ENDPOINT" --bucket no-such-bucket | grep -q no-such-bucket
        AWS_SECRET_ACCESS_KEY=wrong doctor --endpoint "$ENDPOINT" --bucket "$BUCKET" | grep -q 'sign and list.*key'
        [ "$(doctor --endpoint http://127.0.0.1:1 --bucket b | wc -l)" = 1 ]
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

fn profile(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        mkdir -p mnt; trap '"$SANDPAIL" umount mnt 2>/dev/null || true' EXIT
        printf '[work]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" >keys
        export AWS_SHARED_CREDENTIALS_FILE=keys AWS_EC2_METADATA_DISABLED=true
        try() { "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt "$@"; }
        # A profile that is asked for comes before keys of the environment.
        AWS_ACCESS_KEY_ID=wrong try --profile work; echo x >mnt/a
        pid=$("$SANDPAIL" list | grep -F "$PWD/mnt" | sed 's/.*pid //')
        fails grep -q "$AWS_SECRET_ACCESS_KEY" "/proc/$pid/environ" "/proc/$pid/cmdline"
        "$SANDPAIL" umount mnt
        unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
        AWS_PROFILE=work try; [ "$(cat mnt/a)" = x ]; "$SANDPAIL" umount mnt
        fails try 2>err; grep -q '"default"' err; fails try --profile nobody 2>err; grep -q '"nobody"' err
        [ "$(wc -l <err)" = 1 ]
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

/// Keys of a program, good for some seconds: a mount that lives longer asks again.
fn expiring(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        mkdir -p mnt; trap '"$SANDPAIL" umount mnt 2>/dev/null || true' EXIT
        cat >give <<END
#!/bin/sh
echo asked >>$PWD/asked
echo '{"Version":1,"AccessKeyId":"$AWS_ACCESS_KEY_ID","SecretAccessKey":"$AWS_SECRET_ACCESS_KEY","Expiration":"'\$(date -u -d '+20 seconds' +%Y-%m-%dT%H:%M:%SZ)'"}'
END
        chmod +x give; printf '[profile short]\ncredential_process = %s/give\n' "$PWD" >config
        export AWS_CONFIG_FILE=config AWS_SHARED_CREDENTIALS_FILE=none AWS_EC2_METADATA_DISABLED=true
        unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
        "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 --profile short "$BUCKET" mnt
        before=$(wc -l <asked); echo x >mnt/a; [ "$(cat mnt/a)" = x ]
        [ "$(wc -l <asked)" -gt "$before" ] || { echo "asked $before times only"; exit 1; }
        # The program breaks: the keys that it gave last still hold for a while.
        pid=$("$SANDPAIL" list | grep -F "$PWD/mnt" | sed 's/.*pid //')
        printf '#!/bin/sh\nexit 1\n' >give; echo y >mnt/a; "$SANDPAIL" umount mnt
        # A log with a warning stays.
        for n in $(seq 100); do [ -d /proc/$pid ] || break; sleep 0.1; done
        grep -q 'could not be renewed' "/run/sandpail/mount-$pid.log"; rm "/run/sandpail/mount-$pid.log"
    "#;
    let out = world.script_in(&world.local(), script)?.run()?;
    ensure!(!out.contains("asked 0"), "{out}");
    Ok(())
}
