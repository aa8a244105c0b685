//! How many requests everyday commands cost, counted by a proxy that knows nothing of sandpail.

use anyhow::{Result, ensure};
use sandpail_e2e::proxy::kind;
use sandpail_e2e::{Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("requests::of_everyday_commands", of_everyday_commands),
    Test::new("requests::of_plain_directories", of_plain_directories),
];

/// A command, and the most requests of each kind that it may cost; kinds not named may not occur.
struct Budget {
    what: &'static str,
    script: &'static str,
    most: &'static [(&'static str, usize)],
}

const FILES: usize = 200;

/// Each runs on a mount that has just been made, over 200 small files below `many/`, 200 of more than 4 KiB (too large to
/// be symbolic links, so that a listing tells their type) below `large/`, and a small repository below `repo/`.
const BUDGETS: &[Budget] = &[
    Budget { what: "ls", script: "ls large >/dev/null", most: &[("HEAD", 2), ("LIST", 2)] },
    // Whether it is a file or a symbolic link stands with the object.
    Budget { what: "ls of small files", script: "ls many >/dev/null", most: &[("HEAD", FILES + 2), ("LIST", 2)] },
    // Modes and times live with the objects: one HEAD each, at the very most.
    Budget {
        what: "ls -l of 200 larger files",
        script: "ls -l large >/dev/null",
        most: &[("HEAD", FILES + 2), ("LIST", 2)],
    },
    Budget { what: "ls -l of 200 files", script: "ls -l many >/dev/null", most: &[("HEAD", FILES + 2), ("LIST", 3)] },
    Budget {
        what: "ls -l again, at once",
        script: "ls -l many >/dev/null; sleep 0.1; mark; ls -l many >/dev/null",
        most: &[("HEAD", 1), ("LIST", 1)],
    },
    Budget { what: "find -name", script: "find large -name 'f1*' >/dev/null", most: &[("HEAD", 2), ("LIST", 2)] },
    Budget {
        what: "one create",
        script: "ls >/dev/null; mark; \"$PYTHON\" -c 'open(\"new\", \"w\").write(\"x\")'",
        most: &[("PUT", 1), ("HEAD", 1), ("LIST", 1)],
    },
    // The shell moves the descriptor and closes the first one while the file is still empty: that is stored, too.
    Budget {
        what: "one create by a shell",
        script: "ls many >/dev/null; mark; echo x >many/new",
        most: &[("PUT", 2), ("HEAD", 2), ("LIST", 2)],
    },
    Budget {
        what: "one append to a small file",
        script: "ls many >/dev/null; mark; echo x >>many/f7",
        most: &[("PUT", 1), ("HEAD", 2), ("LIST", 2), ("GET", 1)],
    },
    // On a fresh mount: what `many` is, what its marker says, and the file.
    Budget { what: "one small read", script: "cat many/f9 >/dev/null", most: &[("GET", 1), ("HEAD", 3), ("LIST", 2)] },
    Budget {
        what: "the same small read again",
        script: "cat many/f9 >/dev/null; mark; cat many/f9 >/dev/null",
        most: &[("GET", 0), ("HEAD", 1), ("LIST", 1)],
    },
    Budget {
        what: "stat of what is not there",
        script: "! stat nothing 2>/dev/null",
        most: &[("HEAD", 1), ("LIST", 1)],
    },
    Budget {
        what: "unlink",
        script: "ls many >/dev/null; mark; rm many/f11",
        most: &[("DELETE", 1), ("HEAD", 2), ("LIST", 2), ("PUT", 1)],
    },
    Budget {
        what: "rename of a file",
        script: "ls many >/dev/null; mark; mv many/f12 many/g12",
        most: &[("COPY", 1), ("DELETE", 1), ("HEAD", 3), ("LIST", 4), ("PUT", 1)],
    },
    Budget {
        what: "chmod",
        script: "ls many >/dev/null; mark; chmod 600 many/f13",
        most: &[("COPY", 1), ("HEAD", 2), ("LIST", 2)],
    },
    Budget {
        what: "create, chmod and utimes in one open file",
        script: "ls >/dev/null; mark; \"$PYTHON\" -c 'import os; f = open(\"p\", \"w\"); f.write(\"x\"); os.fchmod(f.fileno(), 0o600); os.utime(f.fileno(), (1e9, 1e9)); f.close()'",
        most: &[("PUT", 1), ("HEAD", 1), ("LIST", 1)],
    },
    Budget {
        what: "git status, warm index",
        script: "cd repo; git status >/dev/null; mark; git status >/dev/null",
        most: &[("HEAD", 60), ("LIST", 40), ("GET", 10), ("PUT", 2), ("DELETE", 2), ("COPY", 2)],
    },
    Budget {
        what: "64 MiB written",
        script: "head -c 67108864 /dev/zero >big",
        most: &[("PUT", 1), ("CREATE-MULTIPART", 1), ("PART", 10), ("COMPLETE-MULTIPART", 1), ("HEAD", 1), ("LIST", 1)],
    },
    Budget {
        what: "4 KiB in the middle of 64 MiB",
        script: "stat big >/dev/null; mark; dd if=/dev/urandom of=big bs=4096 seek=5000 count=1 conv=notrunc status=none",
        most: &[
            ("CREATE-MULTIPART", 1),
            ("PART", 2),
            ("COPY-PART", 10),
            ("COMPLETE-MULTIPART", 1),
            ("GET", 2),
            ("HEAD", 2),
            ("LIST", 1),
        ],
    },
    Budget {
        what: "an append to 64 MiB",
        script: "stat big >/dev/null; mark; echo x >>big",
        most: &[
            ("CREATE-MULTIPART", 1),
            ("PART", 2),
            ("COPY-PART", 10),
            ("COMPLETE-MULTIPART", 1),
            ("GET", 2),
            ("HEAD", 2),
            ("LIST", 1),
        ],
    },
    Budget {
        what: "64 MiB read in one go",
        script: "cat big >/dev/null",
        most: &[("GET", 20), ("HEAD", 1), ("LIST", 1)],
    },
    Budget {
        what: "cp -r of ten files",
        script: "mkdir ten; cp many/f2? ten/; mark; cp -r ten ten2",
        most: &[("PUT", 11), ("COPY", 10), ("GET", 10), ("HEAD", 24), ("LIST", 16)],
    },
];

fn of_everyday_commands(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        &format!(
            "mkdir many large; for n in $(seq {FILES}); do echo $n >many/f$n; printf %5000d $n >large/f$n; done
             git init --quiet repo; cd repo; for n in $(seq 20); do echo $n >f$n; done; git add .; git commit --quiet -m all"
        ),
    )?;
    mount.unmount()?;
    hold(world, &[], BUDGETS)
}

/// The same over what plain tools have put: `plain/d0/f0` to `plain/d19/f49`, and 2500 files in `long/`.
const PLAIN_BUDGETS: &[Budget] = &[
    Budget { what: "ls -l", script: "ls -l plain/d7 >/dev/null", most: &[("HEAD", 5), ("LIST", 4)] },
    Budget {
        what: "find -ls of 1000 files in 20 directories",
        script: "[ $(find plain -ls | wc -l) = 1021 ]",
        most: &[("HEAD", 17), ("LIST", 22)],
    },
    Budget {
        what: "ls -l of 2500 files",
        script: "[ $(ls -l long | wc -l) = 2501 ]",
        most: &[("HEAD", 3), ("LIST", 5)],
    },
    Budget { what: "ls of 2500 files", script: "[ $(ls long | wc -l) = 2500 ]", most: &[("HEAD", 3), ("LIST", 5)] },
    Budget {
        what: "find -newer",
        script: "find plain -newer plain/d3/f3 >/dev/null; find plain -size +5k",
        most: &[("HEAD", 19), ("LIST", 44)],
    },
    Budget {
        what: "one create",
        script: "ls plain/d3 >/dev/null; mark; \"$PYTHON\" -c 'open(\"plain/d3/new\", \"w\").write(\"x\")'",
        most: &[("PUT", 1), ("HEAD", 2), ("LIST", 2)],
    },
    Budget {
        what: "chmod",
        script: "ls -l plain/d4 >/dev/null; mark; chmod 700 plain/d4/f9",
        // The marker: twice, where the store is only then known for one that drops its metadata.
        most: &[("PUT", 2), ("COPY", 1), ("HEAD", 2), ("LIST", 2)],
    },
    Budget {
        what: "one append",
        script: "ls -l plain/d5 >/dev/null; mark; echo x >>plain/d5/f9",
        most: &[("PUT", 1), ("GET", 1), ("HEAD", 2), ("LIST", 2)],
    },
];

fn of_plain_directories(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let fill = r#"
        import boto3, concurrent.futures, os
        s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1")
        keys = [f"plain/d{d}/f{f}" for d in range(20) for f in range(50)] + [f"long/f{f}" for f in range(2500)]
        put = lambda key: s3.put_object(Bucket=os.environ["BUCKET"], Key=key, Body=b"some data")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(put, keys))
    "#;
    let fill = fill.lines().map(|line| line.strip_prefix("        ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    world.script_in(&world.local(), &format!("\"$PYTHON\" - <<'END'\n{fill}\nEND"))?.run()?;
    hold(world, &[], PLAIN_BUDGETS)
}

/// Runs each on a mount of its own.
fn hold(world: &World, options: &[&str], budgets: &[Budget]) -> Result<()> {
    let mut over = Vec::new();
    println!("  requests on {}:", world.kind().name());
    for budget in budgets {
        let (mount, proxy) = world.mount_counted(options)?;
        // A script says with `mark` from where on requests count.
        let mut script = budget.script;
        if let Some((before, after)) = budget.script.rsplit_once("mark;") {
            world.sh(&mount, before)?;
            script = after;
        }
        // Settle: the first request of a mount may still be under way.
        std::thread::sleep(std::time::Duration::from_millis(150));
        proxy.take();
        let inside = if budget.script.starts_with("cd repo;") { "cd repo; " } else { "" };
        world.sh(&mount, &format!("{inside}{script}"))?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        let bytes = proxy.bytes_sent();
        let requests = proxy.take();
        let mut counts = std::collections::BTreeMap::new();
        for request in &requests {
            *counts.entry(kind(request)).or_insert(0) += 1;
        }
        println!("    {:<42} {counts:?} {bytes} B", budget.what);
        for (kind, count) in &counts {
            let most = budget.most.iter().find(|(name, _)| name == kind).map_or(0, |(_, most)| *most);
            if *count > most {
                let shown: Vec<_> =
                    requests.iter().filter(|request| sandpail_e2e::proxy::kind(request) == *kind).take(8).collect();
                over.push(format!("{}: {count} {kind}, at most {most}: {shown:#?}", budget.what));
            }
        }
        drop(mount);
    }
    ensure!(over.is_empty(), "more requests than allowed:\n{}", over.join("\n"));
    Ok(())
}
