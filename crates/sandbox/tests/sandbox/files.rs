//! Files, archives and images, in sandboxes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandpail_sandbox::{ByteStream, ListOptions, RootFs, Sandbox, SandboxError, SandboxSpec};
use tar::{Builder, EntryType, Header};

use crate::mounts::tmpfs;
use crate::world::{World, run, shell};

crate::tests![
    paths_are_the_sandboxes,
    a_workspace_is_packed_without_mounts,
    no_archive_lands_outside,
    changes_are_reported,
    an_image_is_a_root,
];

fn body(bytes: impl Into<Bytes>) -> ByteStream {
    Box::pin(stream::iter([Ok(bytes.into())]))
}

async fn read(sandbox: &Sandbox, path: &str) -> Result<Vec<u8>, SandboxError> {
    let chunks: Vec<_> = sandbox.read_file(Path::new(path)).await?.body.collect().await;
    chunks.into_iter().collect::<Result<Vec<_>, _>>().map(|chunks| chunks.concat())
}

async fn paths_are_the_sandboxes() {
    let world = World::new();
    let secret = world.directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let sandbox = world.sandbox().await;
    let path = Path::new("/workspace/a/b.txt");
    sandbox.write_file(path, body("one"), 10).await.unwrap();
    assert_eq!(shell(&sandbox, "cat a/b.txt; stat -c '%u %g %a' a/b.txt").await.stdout, "one0 0 644\n");
    assert!(matches!(sandbox.write_file(path, body("too long"), 3).await, Err(SandboxError::TooLarge { .. })));
    assert_eq!(read(&sandbox, "/workspace/a/b.txt").await.unwrap(), b"one");
    // A link to a place of the host is one to a place of the sandbox, which is not there, or is another.
    shell(&sandbox, &format!("ln -s {} host; ln -s /proc/1/root/etc/shadow shadow; mkfifo fifo", secret.display()))
        .await;
    assert!(matches!(read(&sandbox, "/workspace/host").await, Err(SandboxError::NotFound { .. })));
    assert!(read(&sandbox, "/workspace/shadow").await.is_err());
    assert!(read(&sandbox, "/workspace/fifo").await.is_err());
    assert!(read(&sandbox, &format!("/../../../{}", secret.display())).await.is_err());
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    let listed =
        sandbox.list_files(Path::new("/workspace"), ListOptions { recursive: true, hidden: true }).await.unwrap();
    let names: Vec<_> = listed.iter().map(|info| info.path.to_str().unwrap()).collect();
    let expected = ["a", "a/b.txt", "fifo", "host", "shadow"];
    assert_eq!(names, expected.map(|name| format!("/workspace/{name}")));
    sandbox.rename(path, Path::new("/tmp/moved")).await.unwrap();
    assert_eq!(sandbox.stat(Path::new("/tmp/moved")).await.unwrap().size, 3);
    sandbox.delete(Path::new("/workspace/a"), true).await.unwrap();
    sandbox.mkdir(Path::new("/workspace/x/y"), true).await.unwrap();
    assert_eq!(shell(&sandbox, "ls").await.stdout, "fifo\nhost\nshadow\nx\n");
    sandbox.destroy().await.unwrap();
}

async fn a_workspace_is_packed_without_mounts() {
    let world = World::new();
    let (old, new) = (world.sandbox().await, world.sandbox().await);
    shell(&old, "mkdir -p d/e skip; echo 1 >d/e/.f; chmod 751 d/e/.f; ln -s /usr/bin/env l; echo 2 >skip/g").await;
    old.attach(tmpfs(), Path::new("/workspace/data")).await.unwrap();
    shell(&old, "echo 3 >data/h").await;
    let chunks: Vec<_> = old.persist(vec![PathBuf::from("skip")]).await.unwrap().collect().await;
    let tar = chunks.into_iter().collect::<Result<Vec<_>, _>>().unwrap().concat();
    assert!(matches!(new.hydrate(body(tar.clone()), 100).await, Err(SandboxError::TooLarge { limit: 100, .. })));
    new.hydrate(body(tar), 1 << 20).await.unwrap();
    let found = shell(&new, "find . | sort | tr '\\n' ' '; stat -c '%a %U' d/e/.f; readlink l").await;
    assert_eq!(found.stdout, ". ./d ./d/e ./d/e/.f ./l 751 root\n/usr/bin/env\n");
    for sandbox in [old, new] {
        sandbox.destroy().await.unwrap();
    }
}

fn tar(members: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, target) in members {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        let contents = if *kind == EntryType::Regular { name.as_bytes() } else { b"" };
        header.set_size(contents.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_cksum();
        tar.append(&header, contents).unwrap();
    }
    tar.into_inner().unwrap()
}

async fn no_archive_lands_outside() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    use EntryType::{Link, Regular, Symlink};
    let attacks: [&[(EntryType, &str, &str)]; 4] = [
        &[(Regular, "../etc/new", "")],
        &[(Symlink, "l", "/etc"), (Regular, "l/new", "")],
        &[(Symlink, "m", "../etc"), (Regular, "m/new", "")],
        &[(Link, "h", "../etc/passwd")],
    ];
    for members in attacks {
        let error = sandbox.hydrate(body(tar(members)), 1 << 20).await.unwrap_err();
        assert!(matches!(error, SandboxError::Archive { exit: 2, .. }), "{members:?}: {error}");
    }
    let error = sandbox.hydrate(body("no tar"), 1 << 20).await.unwrap_err();
    assert!(matches!(error, SandboxError::Archive { exit: 2, .. }), "{error}");
    assert_eq!(shell(&sandbox, "ls /etc/new h").await.stdout, "");
    sandbox.destroy().await.unwrap();
}

async fn changes_are_reported() {
    let world = World::new();
    let sandbox = world.sandbox().await;
    let mut events = sandbox.watch(Path::new("/workspace"), true).await.unwrap();
    shell(&sandbox, "mkdir d; echo 1 >d/f").await;
    loop {
        let event = events.recv().await.expect("the watch ended");
        if event.path == Path::new("/workspace/d/f") {
            assert_eq!(event.kind, "create");
            break;
        }
    }
    sandbox.destroy().await.unwrap();
}

/// An image with the programs that a shell needs, of this host.
fn image(layout: &Path) {
    use sha2::{Digest, Sha256};
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |contents: &[u8]| {
        let hex = hex::encode(Sha256::digest(contents));
        fs::write(blobs.join(&hex), contents).unwrap();
        format!("sha256:{hex}")
    };
    let mut layer = Builder::new(Vec::new());
    let libraries =
        String::from_utf8(std::process::Command::new("ldd").arg("/bin/sh").output().unwrap().stdout).unwrap();
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain(["/bin/sh"]) {
        layer.append_path_with_name(Path::new(path).canonicalize().unwrap(), &path[1..]).unwrap();
    }
    let layer = blob(&layer.into_inner().unwrap());
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"Env":["GREETING=hello","OTHER=image"]}},
            "rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    );
    let config = blob(config.as_bytes());
    let manifest =
        blob(format!(r#"{{"config":{{"digest":"{config}"}},"layers":[{{"digest":"{layer}"}}]}}"#).as_bytes());
    fs::write(layout.join("index.json"), format!(r#"{{"manifests":[{{"digest":"{manifest}"}}]}}"#)).unwrap();
    symlink("/etc", layout.join("unrelated")).unwrap();
}

async fn an_image_is_a_root() {
    let world = World::new();
    let layout = world.directory.path().join("layout");
    image(&layout);
    let mut spec = SandboxSpec { rootfs: RootFs::Image(layout.clone()), ..SandboxSpec::default() };
    spec.env.insert("OTHER".to_owned(), "mine".to_owned());
    for _ in 0..2 {
        let sandbox = world.create(spec.clone()).await;
        let done =
            run(&sandbox, &["/bin/sh", "-c", "echo $GREETING $OTHER; pwd; echo x >/new; test ! -e /usr/bin/env"]).await;
        assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.code), ("hello mine\n/workspace\n", "", 0));
        assert_eq!(read(&sandbox, "/new").await.unwrap(), b"x\n");
        sandbox.destroy().await.unwrap();
    }
    let missing = SandboxSpec { rootfs: RootFs::Image(layout.join("none")), ..SandboxSpec::default() };
    let error = world.runtime.create(crate::world::new_id(), missing).await.unwrap_err().to_string();
    assert!(error.contains("layout/none") && error.contains("cannot be opened"), "{error}");
}
