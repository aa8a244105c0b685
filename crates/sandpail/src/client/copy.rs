//! `sandpail sandbox cp`: files in and out, streamed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use ureq::SendBody;

use super::http::{self, Client};

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Here(PathBuf),
    Standard,
    Inside { id: String, path: String },
}

impl Side {
    /// `SANDBOX:/PATH` or `SANDBOX:PATH` (below `/workspace`); everything else is here. `./a:b` is here too.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Standard;
        }
        match text.split_once(':') {
            Some((id, path)) if !id.is_empty() && id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')) => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/workspace/{path}") };
                Self::Inside { id: id.to_owned(), path }
            }
            _ => Self::Here(PathBuf::from(text)),
        }
    }
}

pub(crate) fn run(client: &Client, from: &str, to: &str, recursive: bool) -> anyhow::Result<()> {
    match (Side::parse(from), Side::parse(to)) {
        (Side::Here(from), Side::Inside { id, path }) if from.is_dir() => {
            if !recursive {
                bail!("{} is a directory; copy it with --recursive", from.display());
            }
            upload_directory(client, &from, &id, path.trim_end_matches('/'))
        }
        (Side::Here(from), Side::Inside { id, mut path }) => {
            let file = File::open(&from).with_context(|| format!("cannot read {}", from.display()))?;
            if path.ends_with('/') || is_directory(client, &id, &path)? {
                path = format!("{}/{}", path.trim_end_matches('/'), name_of(&from)?);
            }
            upload(client, &id, &path, file)
        }
        (Side::Standard, Side::Inside { id, path }) => upload(client, &id, &path, std::io::stdin()),
        (Side::Inside { id, path }, Side::Standard) => download(client, &id, &path, &mut std::io::stdout()),
        (Side::Inside { id, path }, Side::Here(to)) => {
            if is_directory(client, &id, &path)? {
                if !recursive {
                    bail!("{path} is a directory; copy it with --recursive");
                }
                return download_directory(client, &id, path.trim_end_matches('/'), &to);
            }
            let to = if to.is_dir() { to.join(name_of(Path::new(&path))?) } else { to };
            download_to(client, &id, &path, &to)
        }
        _ => bail!("one side must be SANDBOX:PATH, the other a path here or `-`"),
    }
}

fn name_of(path: &Path) -> anyhow::Result<String> {
    let name = path.file_name().with_context(|| format!("{} has no file name", path.display()))?;
    Ok(name.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

fn file_route(id: &str, path: &str) -> String {
    format!("/v1/sandbox/{id}/file{}?scope=sandbox", http::path(path))
}

fn upload(client: &Client, id: &str, path: &str, from: impl Read) -> anyhow::Result<()> {
    let mut from = from;
    client.send("PUT", &file_route(id, path), &[], SendBody::from_reader(&mut from)).map(drop)
}

fn download(client: &Client, id: &str, path: &str, to: &mut impl Write) -> anyhow::Result<()> {
    let answer = client.send("GET", &file_route(id, path), &[], ())?;
    std::io::copy(&mut answer.into_body().into_reader(), to).with_context(|| format!("{path} did not come whole"))?;
    to.flush()?;
    Ok(())
}

/// A file here appears when all of it has come.
fn download_to(client: &Client, id: &str, path: &str, to: &Path) -> anyhow::Result<()> {
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("cannot write into {}", directory.display()))?;
    download(client, id, path, &mut part)?;
    part.persist(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

fn is_directory(client: &Client, id: &str, path: &str) -> anyhow::Result<bool> {
    let answer = client.get(&format!("/v1/sandbox/{id}/stat?path={}", http::value(path)));
    Ok(answer.is_ok_and(|told| told["type"] == "directory"))
}

fn upload_directory(client: &Client, from: &Path, id: &str, to: &str) -> anyhow::Result<()> {
    client.post(&format!("/v1/sandbox/{id}/mkdir"), &json!({ "path": to, "recursive": true }))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let inside = format!("{to}/{}", name_of(&entry.path())?);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            upload_directory(client, &entry.path(), id, &inside)?;
        } else if kind.is_file() {
            let file = File::open(entry.path()).with_context(|| format!("cannot read {}", entry.path().display()))?;
            upload(client, id, &inside, file)?;
        } else {
            eprintln!("sandpail: {} is no regular file, left out", entry.path().display());
        }
    }
    Ok(())
}

fn download_directory(client: &Client, id: &str, from: &str, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let query = format!("/v1/sandbox/{id}/files?path={}&hidden=true", http::value(from));
    let answer = client.get(&query)?;
    for file in answer["files"].as_array().context("the daemon's list is no list")? {
        // What comes from a sandbox is not trusted: a name must not lead out of the target.
        let name = name_of(Path::new(file["name"].as_str().context("an entry without a name")?))?;
        match file["type"].as_str() {
            Some("directory") => download_directory(client, id, &format!("{from}/{name}"), &to.join(&name))?,
            Some("file") => download_to(client, id, &format!("{from}/{name}"), &to.join(&name))?,
            _ => eprintln!("sandpail: {from}/{name} is no regular file, left out"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let inside = |id: &str, path: &str| Side::Inside { id: id.to_owned(), path: path.to_owned() };
        assert_eq!(Side::parse("abc:/data/x"), inside("abc", "/data/x"));
        assert_eq!(Side::parse("abc:x"), inside("abc", "/workspace/x"));
        assert_eq!(Side::parse("./abc:x"), Side::Here(PathBuf::from("./abc:x")));
        assert_eq!(Side::parse("/a/b"), Side::Here(PathBuf::from("/a/b")));
        assert_eq!(Side::parse("-"), Side::Standard);
    }
}
