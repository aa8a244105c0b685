//! s3fs and sandpail read what the other wrote: bytes, modes, owners, times, links.

use anyhow::{Result, ensure};
use sandpail_e2e::{ServerKind, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("interop::s3fs_reads_what_sandpail_wrote", s3fs_reads),
    Test::new("interop::sandpail_reads_what_s3fs_wrote", sandpail_reads),
    Test::new("interop::rclone_reads_and_writes", rclone).on(&[ServerKind::Embedded, ServerKind::SeaweedFs]),
];

/// Makes files of many kinds; s3fs cannot say `No such file` of directories on every server, so they come first.
const FILL: &str = r#"
    mkdir d; mkdir d/sub; echo hello >d/a; chmod 640 d/a; touch -d '2003-03-03 03:03:03 UTC' d/a; : >empty; chmod 755 empty
    head -c 3000000 "$LOCAL/random" >big; ln -s d/a link; ln -s /no/where dangling; echo ünï >'nä me+%20'; chmod 4711 big
    if [ "$(id -u)" = 0 ]; then chown 12:34 d/a; chown 56:78 empty; fi; echo x >d/sub/x
"#;

const LIST: &str = r#"
    find . -type f -printf '%p %m %U %G %s %Ts\n' | sort; find . -type l -printf '%p -> %l\n' | sort
    find . -mindepth 1 -type d -printf '%p %y\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum
"#;

fn compared(world: &World, s3fs_first: bool) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world.script_in(&world.local(), "head -c 3000000 /dev/urandom >random")?.run()?;
    let list = |directory: &std::path::Path| world.script_in(directory, LIST)?.run();
    // What s3fs wrote is nothing that a listing describes.
    let list_both = || -> Result<String> {
        let found = list(world.mount(&[])?.path())?;
        let asked = list(world.mount_at("posix", &["--metadata", "posix"])?.path())?;
        ensure!(found == asked, "with --metadata posix: {asked}, else {found}");
        Ok(found)
    };
    let fill = |directory: &std::path::Path| world.script_in(directory, FILL)?.run();
    let (wrote, read) = if s3fs_first {
        let s3fs = world.mount_s3fs("s3fs")?;
        fill(s3fs.path())?;
        let wrote = list(s3fs.path())?;
        (wrote, list_both()?)
    } else {
        let ours = world.mount(&[])?;
        fill(ours.path())?;
        let wrote = list(ours.path())?;
        let s3fs = world.mount_s3fs("s3fs")?;
        (wrote, list(s3fs.path())?)
    };
    let differences: Vec<_> = wrote
        .lines()
        .filter(|line| !read.lines().any(|other| other == *line))
        .map(|line| format!("wrote {line}"))
        .chain(
            read.lines().filter(|line| !wrote.lines().any(|other| other == *line)).map(|line| format!("read  {line}")),
        )
        .collect();
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

fn s3fs_reads(world: &World) -> Result<()> {
    compared(world, false)
}

fn sandpail_reads(world: &World) -> Result<()> {
    compared(world, true)
}

fn rclone(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    let script = r#"
        export RCLONE_CONFIG="$LOCAL/rclone.conf"; : >"$RCLONE_CONFIG"
        remote=":s3,provider=Other,env_auth=true,force_path_style=true,endpoint='$ENDPOINT':$BUCKET"
        mkdir -p up/sub; echo one >up/a; head -c 7000000 /dev/urandom >up/sub/b; touch -d '2004-04-04 UTC' up/a
        rclone copy "$remote/up" "$LOCAL/down"; diff -r up "$LOCAL/down"; [ "$(stat -c %Y "$LOCAL/down/a")" = "$(stat -c %Y up/a)" ]
        mkdir "$LOCAL/new"; echo two >"$LOCAL/new/c"; touch -d '2005-05-05 UTC' "$LOCAL/new/c"; rclone copy "$LOCAL/new" "$remote/new"
        # What the mount knows of its root is believed for a second.
        sleep 1.2
        [ "$(cat new/c)" = two ]; [ "$(stat -c %Y new/c)" = "$(stat -c %Y "$LOCAL/new/c")" ]
    "#;
    world.sh(&mount, script)?;
    mount.unmount()
}
