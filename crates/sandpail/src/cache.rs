//! `sandpail cache`: the disk cache of mounts.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use sandpail_fs::cache::{DiskCache, Scrubbed};
use serde_json::json;

use crate::cli::{CacheArgs, CacheCommand};

pub(crate) fn run(arguments: &CacheArgs) -> anyhow::Result<ExitCode> {
    let dir = arguments.cache_dir.as_ref().context("give --cache-dir: that of the mounts")?;
    ensure!(dir.is_dir(), "cache directory {} does not exist", dir.display());
    let CacheCommand::Scrub { json } = arguments.command;
    let scrubbed = DiskCache::scrub(dir).with_context(|| format!("cannot look through {}", dir.display()))?;
    println!("{}", if json { as_json(scrubbed) } else { as_text(scrubbed) });
    Ok(if scrubbed.damaged > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn as_json(Scrubbed { files, blocks, bytes, damaged, leftovers, foreign }: Scrubbed) -> String {
    json!({
        "files": files, "blocks": blocks, "bytes": bytes, "damaged": damaged, "leftovers": leftovers, "foreign": foreign,
    })
    .to_string()
}

fn as_text(Scrubbed { files, blocks, bytes, damaged, leftovers, foreign }: Scrubbed) -> String {
    let mut text = format!("{files} file(s), {blocks} whole block(s) of {bytes} bytes, {damaged} damaged");
    if damaged > 0 {
        text += "; they are taken out and fetched again when they are read";
    }
    if leftovers > 0 {
        text += &format!("\n{leftovers} leftover(s) of interrupted mounts removed");
    }
    if foreign > 0 {
        text += &format!("\n{foreign} other file(s) are not the cache's and left alone");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_told() {
        let whole = Scrubbed { files: 1, blocks: 2, bytes: 7, ..Scrubbed::default() };
        assert_eq!(as_text(whole), "1 file(s), 2 whole block(s) of 7 bytes, 0 damaged");
        let damaged = as_text(Scrubbed { damaged: 1, leftovers: 2, foreign: 3, ..whole });
        assert!(damaged.contains("1 damaged; they are taken out"), "{damaged}");
        assert!(damaged.contains("\n2 leftover(s)") && damaged.contains("\n3 other file(s)"), "{damaged}");
        assert!(as_json(whole).contains("\"damaged\":0"));
    }
}
