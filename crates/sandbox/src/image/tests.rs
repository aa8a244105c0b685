//! Images that the tests build, unpacked.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::manifest::arch;
use super::source::sha256;
use super::{Image, unpack, unpack_bounded};
use crate::SandboxError;

/// A member of a layer: `d/` is a directory, `l>target` a symbolic link, `h=target` a hard link, others are files with
/// their own name as contents.
fn layer(members: &[&str]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for member in members {
        let (kind, name, target) = if let Some((name, target)) = member.split_once('>') {
            (EntryType::Symlink, name, target)
        } else if let Some((name, target)) = member.split_once('=') {
            (EntryType::Link, name, target)
        } else if member.ends_with('/') {
            (EntryType::Directory, *member, "")
        } else {
            (EntryType::Regular, *member, "")
        };
        let contents = if kind == EntryType::Regular { name.as_bytes() } else { b"" };
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o4750 });
        header.set_mtime(1_000_000);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_cksum();
        tar.append(&header, contents).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// An image layout in a directory, and a cache for it.
struct World {
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("layout/blobs/sha256")).unwrap();
        Self { directory }
    }

    fn layout(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn blob(&self, contents: &[u8]) -> String {
        let hex = sha256(contents);
        fs::write(self.layout().join("blobs/sha256").join(&hex), contents).unwrap();
        format!("sha256:{hex}")
    }

    fn json(&self, document: &Value) -> String {
        self.blob(document.to_string().as_bytes())
    }

    fn config(&self, layers: &[Vec<u8>], arch: &str) -> String {
        let diffs: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
        self.json(&json!({
            "architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs},
            "config": {"Env": ["PATH=/bin", "A=b=c"], "WorkingDir": "/srv", "Cmd": ["sh"], "Entrypoint": null,
                       "User": "1000"},
        }))
    }

    fn manifest(&self, layers: &[Vec<u8>], arch: &str) -> String {
        let config = self.config(layers, arch);
        let layers: Vec<_> = layers.iter().map(|layer| json!({"digest": self.blob(&gzip(layer))})).collect();
        self.json(&json!({"schemaVersion": 2, "config": {"digest": config}, "layers": layers}))
    }

    fn index(&self, manifests: &Value) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
    }

    fn image(layers: &[Vec<u8>]) -> Self {
        let world = Self::new();
        world.index(&json!([{"digest": world.manifest(layers, arch())}]));
        world
    }

    fn unpack(&self) -> Result<Image, SandboxError> {
        unpack(&self.layout(), &self.cache())
    }

    /// Unpacks into a directory that outlives this.
    fn unpack_kept(self) -> TempDir {
        let kept = tempfile::tempdir().unwrap();
        let root = self.unpack().unwrap().root;
        fs::rename(root, kept.path()).unwrap();
        kept
    }

    /// What cannot be unpacked leaves nothing, and says why.
    #[track_caller]
    fn check_refused(&self, why: &str) {
        let text = self.unpack().unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
        assert!(text.contains(self.layout().to_str().unwrap()), "{text}");
        let left: Vec<_> = fs::read_dir(self.cache())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".lock-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Everything below a directory, by name, directories with `/`.
fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let is_directory = path.symlink_metadata().unwrap().is_dir();
            found.push(if is_directory { format!("{name}/") } else { name.to_owned() });
            if is_directory {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

#[track_caller]
fn check_layers(layers: &[&[&str]], expected: &[&str]) {
    let layers: Vec<_> = layers.iter().map(|members| layer(members)).collect();
    let world = World::image(&layers);
    assert_eq!(tree(&world.unpack().unwrap().root), expected);
}

#[test]
fn an_image_is_unpacked_once() {
    let world = World::image(&[layer(&["bin/", "bin/sh", "var/run>/run"])]);
    let image = world.unpack().unwrap();
    assert_eq!(image.env, [("PATH".to_owned(), "/bin".to_owned()), ("A".to_owned(), "b=c".to_owned())]);
    assert_eq!((image.working_dir.as_deref(), image.user.as_deref()), (Some(Path::new("/srv")), Some("1000")));
    assert_eq!((image.entrypoint.len(), image.cmd.as_slice()), (0, &["sh".to_owned()][..]));
    let sh = fs::metadata(image.root.join("bin/sh")).unwrap();
    assert_eq!((sh.mode() & 0o7777, sh.mtime()), (0o750, 1_000_000));
    assert_eq!(fs::metadata(&image.root).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(world.cache()).unwrap().mode() & 0o7777, 0o700);
    fs::write(image.root.join("mark"), "").unwrap();
    assert_eq!(world.unpack().unwrap(), image);
    assert!(image.root.join("mark").exists());
}

#[test]
fn two_at_once_and_one_that_was_killed() {
    let world = World::image(&[layer(&["a"])]);
    let id = world.unpack().unwrap().root.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_dir_all(world.cache().join(&id)).unwrap();
    fs::create_dir(world.cache().join(format!(".unpacking-{id}"))).unwrap();
    fs::write(world.cache().join(format!(".unpacking-{id}/half")), "").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(tree(&world.unpack().unwrap().root), ["a"]));
        }
    });
}

#[test]
fn layers_replace_and_hide() {
    // A whiteout hides a file, a directory, and what is not there.
    check_layers(&[&["a", "d/", "d/b", "kept"], &[".wh.a", ".wh.d", ".wh.none", "e/.wh.none"]], &["kept"]);
    // Opaque: only what the layers below have goes, wherever the mark comes.
    check_layers(
        &[&["d/", "d/old", "d/sub/", "d/sub/old"], &["d/", "d/new", "d/sub/new", "d/.wh..wh..opq"]],
        &["d/", "d/new", "d/sub/", "d/sub/new"],
    );
    // Hidden and made anew in one layer.
    check_layers(&[&["d/", "d/old"], &["d/", "d/new", ".wh.d"]], &["d/", "d/new"]);
    check_layers(&[&["a"], &["a", ".wh.a"]], &["a"]);
    // Files, directories and links take each other's places.
    check_layers(&[&["a/", "a/b", "c", "l>a"], &["a", "c/", "c/d", "l/", "l/e"]], &["a", "c/", "c/d", "l/", "l/e"]);
    // A file system's own notes are no files.
    check_layers(&[&["a", ".wh..wh.plnk", ".wh..wh.aufs"]], &["a"]);
}

#[test]
fn hard_links_reach_lower_layers() {
    let world = World::image(&[layer(&["a"]), layer(&["sub/b=a", "sub/c=./sub/b"])]);
    let root = world.unpack().unwrap().root;
    assert_eq!(fs::metadata(root.join("a")).unwrap().nlink(), 3);
    assert_eq!(tree(&root), ["a", "sub/", "sub/b", "sub/c"]);
}

#[test]
fn a_link_of_a_lower_layer_means_the_image() {
    let world = World::image(&[
        layer(&["run/", "usr/lib/", "lib>usr/lib", "var/run>/run"]),
        layer(&["lib/new", "var/run/pid"]),
    ]);
    let root = world.unpack().unwrap().root;
    assert_eq!(tree(&root), ["lib", "run/", "run/pid", "usr/", "usr/lib/", "usr/lib/new", "var/", "var/run"]);
}

#[test]
fn a_link_may_come_before_its_target() {
    check_layers(
        &[&["var/run>/run", "opt/a>../b/./c"], &["var/run/d/pid", "opt/a/x"]],
        &["b/", "b/c/", "b/c/x", "opt/", "opt/a", "run/", "run/d/", "run/d/pid", "var/", "var/run"],
    );
    // One that leads to itself is an error, not without end.
    let world = World::image(&[layer(&["l>l", "l/new"])]);
    assert!(world.unpack().is_err());
}

#[test]
fn no_layer_reaches_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let attacks: [&[&[&str]]; 5] = [
        &[&["../new"]],
        &[&["a/../../new"]],
        &[&[&format!("h={target}/secret")]],
        &[&["h=../../secret"]],
        &[&["d/", ".wh..."]],
    ];
    for layers in attacks {
        let world = World::image(&layers.iter().map(|members| layer(members)).collect::<Vec<_>>());
        assert!(world.unpack().is_err(), "{layers:?}");
        assert_eq!(tree(outside.path()), ["secret"], "{layers:?}");
        assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().nlink(), 1);
        assert_eq!(tree(world.directory.path()).iter().filter(|name| name.contains("new")).count(), 0);
    }
    // Through a link to somewhere outside: that is a place of the image's own.
    for layers in [
        vec![vec![format!("l>{target}")], vec!["l/new".to_owned()]],
        vec![vec![format!("l>{target}"), "l/new".to_owned()]],
    ] {
        let layers: Vec<_> =
            layers.iter().map(|names| layer(&names.iter().map(String::as_str).collect::<Vec<_>>())).collect();
        let root = World::image(&layers).unpack_kept();
        assert_eq!(tree(outside.path()), ["secret"]);
        assert!(root.path().join(&target[1..]).join("new").is_file());
    }
    // Whiteouts through a link, of everything.
    let world = World::image(&[
        layer(&[&format!("l>{target}"), &format!("up>../../../../../../../..{target}")]),
        layer(&["l/.wh.secret", "l/.wh..wh..opq", "up/.wh.secret"]),
    ]);
    assert_eq!(tree(&world.unpack().unwrap().root), ["l", "up"]);
    assert_eq!(tree(outside.path()), ["secret"]);
}

#[test]
fn devices_are_left_out() {
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    for (kind, name) in [(EntryType::Char, "null"), (EntryType::Block, "disk"), (EntryType::Fifo, "fifo")] {
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    let world = World::image(&[tar.into_inner().unwrap()]);
    assert!(tree(&world.unpack().unwrap().root).is_empty());
}

#[test]
fn damage_is_found() {
    let layers = [layer(&["a"])];
    let blobs = |world: &World| world.layout().join("blobs/sha256");
    let damage = |contents: &[u8], changed: &[u8]| {
        let world = World::image(&layers);
        fs::write(blobs(&world).join(sha256(contents)), changed).unwrap();
        world.check_refused("damaged");
    };
    // Another layer, one that is cut, one with something behind it.
    let good = gzip(&layers[0]);
    damage(&good, &gzip(&layer(&["b"])));
    damage(&good, &good[..good.len() - 4]);
    damage(&good, &[good.as_slice(), b"more"].concat());
    // A configuration that is not the one that was meant.
    let world = World::image(&layers);
    let config = world.config(&layers, arch());
    fs::write(blobs(&world).join(&config["sha256:".len()..]), "{}").unwrap();
    world.check_refused("damaged");
    // A layer that the configuration does not mean.
    let world = World::new();
    let config = world.config(&[layer(&["other"])], arch());
    let blob = world.blob(&gzip(&layers[0]));
    let manifest = world.json(&json!({"config": {"digest": config}, "layers": [{"digest": blob}]}));
    world.index(&json!([{"digest": manifest}]));
    world.check_refused("damaged");
    // A blob that is not there.
    let world = World::image(&layers);
    fs::remove_file(blobs(&world).join(sha256(&good))).unwrap();
    world.check_refused("No such file");
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let world = World::new();
    let ours = world.manifest(&[layer(&["ours"])], arch());
    let other = world.manifest(&[layer(&["other"])], "vax");
    let nested = world.json(&json!({"manifests": [
        {"digest": other, "platform": {"os": "linux", "architecture": "vax"}},
        {"digest": ours, "platform": {"os": "linux", "architecture": arch()}},
        {"digest": other, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]}));
    world.index(&json!([{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": nested}]));
    assert_eq!(tree(&world.unpack().unwrap().root), ["ours"]);

    let world = World::new();
    let other = world.manifest(&[layer(&["other"])], "vax");
    world.index(&json!([{"digest": other, "platform": {"os": "linux", "architecture": "vax"}}]));
    world.check_refused("only: linux/vax");
    world.index(&json!([{"digest": other}]));
    world.check_refused("it is for linux/vax");
    let both = [world.manifest(&[layer(&["a"])], arch()), world.manifest(&[layer(&["b"])], arch())];
    world.index(&json!([{"digest": both[0]}, {"digest": both[1]}]));
    world.check_refused("copy one of them");
    world.index(&json!([{"digest": "sha256:../../etc/passwd"}]));
    world.check_refused("is no sha256 digest");
}

#[test]
fn a_layout_in_a_tar() {
    let world = World::image(&[layer(&["a"]), layer(&["b"])]);
    let mut tar = Builder::new(Vec::new());
    tar.append_dir_all(".", world.layout()).unwrap();
    let tar = tar.into_inner().unwrap();
    for (name, contents) in [("plain.tar", tar.clone()), ("small.tar.gz", gzip(&tar))] {
        let path = world.directory.path().join(name);
        fs::write(&path, contents).unwrap();
        assert_eq!(tree(&unpack(&path, &world.cache()).unwrap().root), ["a", "b"], "{name}");
        fs::remove_dir_all(world.cache()).unwrap();
    }
}

#[test]
fn what_docker_save_wrote() {
    let world = World::new();
    let layers = [layer(&["a"]), layer(&["b"])];
    let config = world.config(&layers, arch());
    let hex = &config["sha256:".len()..];
    let saved = world.directory.path().join("saved");
    for name in ["1", "2", "3"] {
        fs::create_dir_all(saved.join(name)).unwrap();
    }
    fs::copy(world.layout().join("blobs/sha256").join(hex), saved.join(format!("{hex}.json"))).unwrap();
    fs::write(saved.join("1/layer.tar"), &layers[0]).unwrap();
    fs::write(saved.join("3/layer.tar"), &layers[1]).unwrap();
    symlink("../3/layer.tar", saved.join("2/layer.tar")).unwrap();
    let manifest = json!([{"Config": format!("{hex}.json"), "RepoTags": ["a:1"],
                           "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    fs::write(saved.join("manifest.json"), manifest.to_string()).unwrap();
    let pack = |name: &str| {
        let mut tar = Builder::new(Vec::new());
        tar.follow_symlinks(false);
        tar.append_dir_all(".", &saved).unwrap();
        let path = world.directory.path().join(name);
        fs::write(&path, tar.into_inner().unwrap()).unwrap();
        path
    };
    let image = unpack(&pack("saved.tar"), &world.cache()).unwrap();
    assert_eq!((tree(&image.root).join(" ").as_str(), image.cmd.as_slice()), ("a b", &["sh".to_owned()][..]));
    assert_eq!(image.root.file_name().unwrap(), hex);

    fs::remove_dir_all(&image.root).unwrap();
    fs::write(saved.join("3/layer.tar"), layer(&["c"])).unwrap();
    let error = unpack(&pack("wrong.tar"), &world.cache()).unwrap_err().to_string();
    assert!(error.contains("2/layer.tar") && error.contains("save or copy"), "{error}");
    let one = manifest[0].clone();
    fs::write(saved.join("manifest.json"), json!([one, one]).to_string()).unwrap();
    let error = unpack(&pack("two.tar"), &world.cache()).unwrap_err().to_string();
    assert!(error.contains("it has 2 images (a:1, a:1)"), "{error}");
}

#[test]
fn what_is_no_image_is_refused() {
    let world = World::new();
    world.check_refused("neither index.json nor manifest.json");
    let garbage = world.directory.path().join("garbage");
    fs::write(&garbage, vec![b'x'; 5000]).unwrap();
    let error = unpack(&garbage, &world.cache()).unwrap_err().to_string();
    assert!(error.contains("neither a directory nor a tar"), "{error}");
    let error = unpack(&world.directory.path().join("none"), &world.cache()).unwrap_err().to_string();
    assert!(error.contains("cannot be opened"), "{error}");

    let config = world.config(&[layer(&["a"])], arch());
    let blob = world.blob(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0]);
    let manifest = world.json(&json!({"config": {"digest": config}, "layers": [{"digest": blob}]}));
    world.index(&json!([{"digest": manifest}]));
    world.check_refused("--dest-compress-format gzip");
}

#[test]
fn images_are_bounded() {
    let layers = [layer(&["a"]), layer(&["b"])];
    let world = World::image(&layers);
    let len: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
    let error = unpack_bounded(&world.layout(), &world.cache(), len - 1).unwrap_err().0;
    assert!(error.contains("larger than"), "{error}");
    assert!(unpack_bounded(&world.layout(), &world.cache(), len).is_ok());
}
