//! Mounts in the way, and read-only ones.

use std::fs;
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::super::protocol::{Answer, Failure, Request, WireInfo, from_json};
use super::archives::{hydrate, member, names_in, persist};
use super::{ask, errno, files_in, wire};
use crate::ListOptions;

/// Runs the test called `name` again, as root of a mount namespace in which a tmpfs is at `directory/tree/mount` and
/// a file over `directory/tree/sub/file`. Where users may not have namespaces, there is nothing to see.
fn among_mounts(name: &str, directory: &Path) -> Option<std::process::Output> {
    let unshare = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-Urm", "sh", "-ec", script]).arg(directory).arg(std::env::current_exe().unwrap()).arg(name);
        command.env("SANDPAIL_TEST_MOUNTED", directory).output()
    };
    if !unshare("true").is_ok_and(|output| output.status.success()) {
        return None;
    }
    let script = r#"mount -t tmpfs none "$0/tree/mount"; echo mounted > "$0/tree/mount/file"
        mount --bind /proc/version "$0/tree/sub/file"
        exec "$1" --exact "$2" --nocapture"#;
    Some(unshare(script).unwrap())
}

#[test]
fn mounts_are_left_alone() {
    if let Some(directory) = std::env::var_os("SANDPAIL_TEST_MOUNTED") {
        let tree = Path::new(&directory).join("tree");
        assert_eq!(names_in(&persist(&tree, &[])), ["./", "./a", "./sub/"]);
        let delete = |path: &Path| ask(&Request::Delete { path: wire(path), recursive: true }, None).answer;
        let mount = wire(tree.join("mount"));
        for path in [&tree, &mount.0] {
            let busy = delete(path);
            let Err(Failure::File { path, errno: Some(16), .. }) = busy else { panic!("{busy:?}") };
            assert_eq!(path, mount);
        }
        assert_eq!(
            (files_in(&tree), files_in(&mount.0)),
            (vec!["a".into(), "mount".into(), "sub".into()], vec!["file".into()])
        );
        // A tar may write into a mount.
        let mut tar = Vec::new();
        member(&mut tar, EntryType::Regular, "./mount/new", "", b"x");
        assert_eq!(hydrate(&tree, &tar), Ok(Answer::Done));
        assert_eq!(fs::read(mount.0.join("new")).unwrap(), b"x");
        tar.clear();
        member(&mut tar, EntryType::Regular, "here", "", b"both");
        member(&mut tar, EntryType::Link, "mount/there", "here", b"");
        assert_eq!(hydrate(&tree, &tar), Ok(Answer::Done));
        assert_eq!(fs::read(mount.0.join("there")).unwrap(), b"both");
        fs::remove_file(mount.0.join("there")).unwrap();
        // A move out of a mount is a copy; one that would take a mount along is none.
        let rename = |from: PathBuf, to: PathBuf| ask(&Request::Rename { from: wire(from), to: wire(to) }, None).answer;
        assert_eq!(rename(mount.0.join("new"), tree.join("a")), Ok(Answer::Done));
        assert_eq!((fs::read(tree.join("a")).unwrap(), files_in(&mount.0)), (b"x".to_vec(), vec!["file".into()]));
        assert_eq!(errno(&rename(tree.join("sub"), mount.0.join("sub"))), Some(16));
        assert_eq!((files_in(&tree.join("sub")), files_in(&mount.0)), (vec!["file".into()], vec!["file".into()]));
        // A listing goes into mounts, a watch does not.
        let said = ask(&Request::list(wire(&tree), ListOptions { recursive: true, hidden: false }), None);
        let infos: Vec<WireInfo> = from_json(&said.frames[0]).unwrap();
        assert!(infos.iter().any(|info| info.path.0 == mount.0.join("file")));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for path in ["tree/mount", "tree/sub"] {
        fs::create_dir_all(directory.path().join(path)).unwrap();
    }
    for path in ["tree/a", "tree/sub/file"] {
        fs::write(directory.path().join(path), "").unwrap();
    }
    let Some(output) = among_mounts("agent::tests::mounts::mounts_are_left_alone", directory.path()) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

#[test]
fn a_read_only_file_system_is_named_by_its_number() {
    if let Some(directory) = std::env::var_os("SANDPAIL_TEST_MOUNTED") {
        let mount = Path::new(&directory).join("tree/mount");
        let status = std::process::Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&mount).status().unwrap();
        assert!(status.success());
        let write = |name: &str| ask(&Request::Write { path: wire(mount.join(name)) }, Some(&[b"x"])).answer;
        assert_eq!(
            (errno(&write("file")), errno(&write("new")), errno(&write("d/new"))),
            (Some(30), Some(30), Some(30))
        );
        let delete = Request::Delete { path: wire(mount.join("file")), recursive: false };
        assert_eq!(errno(&ask(&delete, None).answer), Some(30));
        let made = ask(&Request::MakeMountpoint { path: wire(&mount) }, None).answer;
        assert_eq!(made, Ok(Answer::Made(None)));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for path in ["tree/mount", "tree/sub"] {
        fs::create_dir_all(directory.path().join(path)).unwrap();
    }
    fs::write(directory.path().join("tree/sub/file"), "").unwrap();
    let name = "agent::tests::mounts::a_read_only_file_system_is_named_by_its_number";
    let Some(output) = among_mounts(name, directory.path()) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}
