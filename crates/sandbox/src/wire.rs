//! What the daemon and a sandbox's init say to each other.
//!
//! ```text
//! daemon ── SetUp ──► starter ── Progress ──► daemon        (once, over the socket that it was started with)
//! daemon ── Order ──► init    ── Report  ───► daemon        (over control.sock, again after a daemon's restart)
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::IdMap;

/// All that the starter needs to know. Descriptors: the listening control socket, the lock of the id range.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SetUp {
    /// Name of the sandbox, which becomes its host name.
    pub(crate) name: String,
    /// The sandbox's own directory on the host.
    pub(crate) directory: PathBuf,
    /// Ids behind its ids.
    pub(crate) ids: IdMap,
    /// Directories that hold the pieces of the root file system.
    pub(crate) layers: Layers,
    /// Host directories to show read-only.
    pub(crate) expose: Vec<PathBuf>,
    /// Files of the daemon's to show.
    pub(crate) files: Vec<ShownFile>,
    /// Directories to cover, if they would be visible.
    pub(crate) hidden: Vec<PathBuf>,
    /// `cgroup.procs` files to join.
    pub(crate) cgroups: Vec<PathBuf>,
    /// A file system image to keep the sandbox's files on.
    pub(crate) disk_image: Option<PathBuf>,
    /// Most open files of a process.
    pub(crate) open_files: u64,
    /// Bytes that `/dev/shm` holds.
    pub(crate) shared_len: u64,
}

/// A file of the daemon's, in the sandbox's directory on the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShownFile {
    /// Its name on the host, relative to [`SetUp::directory`].
    pub(crate) name: String,
    /// Where the sandbox sees it.
    pub(crate) at: PathBuf,
    /// Whether only if something is there already.
    pub(crate) is_optional: bool,
}

/// Where a root file system comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Layers {
    /// `skeleton` for the root, and the host's system directories, each a layer of its own.
    Host {
        /// Has the directories, links and the curated `/etc`.
        skeleton: PathBuf,
        /// Such as `usr`: directories of the host's root that are shown.
        system: Vec<String>,
    },
    /// Whole root file systems, the uppermost first.
    Stack(Vec<PathBuf>),
}

/// How the start goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// Init runs; its descriptor (pidfd) comes with this.
    Init {
        /// Its pid as the host sees it.
        pid: i32,
        /// What had to be left out.
        notes: Vec<String>,
    },
    /// Init listens.
    Ready,
    /// It cannot be done.
    Failed {
        /// What was tried, and why it failed.
        what: String,
        /// The errno, if one.
        errno: Option<i32>,
    },
}

/// What init is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Tell about the children that are kept. Answer: [`Report::Hello`].
    Hello,
    /// Start something. Answers: [`Report::Started`] and in the end [`Report::Exited`], or [`Report::Failed`].
    Start(Box<Start>),
    /// Send a signal to a child's process group.
    Signal {
        /// Which child.
        id: u64,
        /// Which signal.
        signal: i32,
    },
    /// Kill a child and all that descends from it.
    Kill {
        /// Which child.
        id: u64,
    },
    /// Hand out the kept descriptors again. Answer: [`Report::Streams`].
    Streams {
        /// Which child.
        id: u64,
    },
    /// A kept child that ended need not be remembered any longer; its kept descriptors are closed.
    Forget {
        /// Which child.
        id: u64,
    },
}

/// A child to start. Descriptors: standard input, output and error; for kept children also those to keep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Chosen by the daemon; never used before in this sandbox.
    pub(crate) id: u64,
    /// What to run.
    pub(crate) program: Program,
    /// Where; must be there.
    pub(crate) cwd: PathBuf,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// After this time it is killed with all that descends from it.
    pub(crate) timeout_ms: Option<u64>,
    /// Whether init remembers it (and its end) for a daemon that restarts.
    pub(crate) is_kept: bool,
}

/// What a child is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Program {
    /// A program and its arguments; a shell is asked for what is no program.
    Command {
        /// Not empty.
        argv: Vec<String>,
    },
    /// A command in the state of a session.
    Session {
        /// Not empty.
        argv: Vec<String>,
        /// The file in the sandbox that keeps the session's state.
        state: PathBuf,
        /// The daemon's variables, for a session that does not have them yet.
        given: Vec<(String, String)>,
        /// Which of the daemon's environments they are.
        given_count: u32,
        /// Variables for this command only.
        only: Vec<(String, String)>,
        /// Whether [`Start::cwd`] is for this command only; else it is where a new session begins.
        is_cwd_given: bool,
    },
    /// A shell on a terminal of its own. The terminal's descriptor comes with [`Report::Started`].
    Terminal {
        /// The shell, if not the usual one.
        shell: Option<String>,
        /// The state of the session that it begins with.
        state: Option<PathBuf>,
        /// Width in characters.
        cols: u16,
        /// Height in lines.
        rows: u16,
    },
    /// Our own file agent.
    Agent,
}

/// What init says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Answer to [`Order::Hello`].
    Hello {
        /// The kept children.
        children: Vec<Kept>,
        /// Ids from this one on were never used.
        next_id: u64,
    },
    /// A child was started.
    Started {
        /// Which.
        id: u64,
        /// Its pid as the sandbox sees it.
        pid: i32,
    },
    /// A child could not be started.
    Failed {
        /// Which.
        id: u64,
        /// Why, for people.
        message: String,
    },
    /// A child ended.
    Exited {
        /// Which.
        id: u64,
        /// How.
        end: End,
    },
    /// The kept descriptors of a child come with this.
    Streams {
        /// Which.
        id: u64,
    },
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Its code, 128+n for signal n, 124 after its time.
    pub(crate) code: i32,
    /// The signal, if it was one.
    pub(crate) signal: Option<i32>,
    /// Whether its time was over.
    pub(crate) is_timeout: bool,
}

/// A child that init remembers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its id.
    pub(crate) id: u64,
    /// Its pid as the sandbox sees it.
    pub(crate) pid: i32,
    /// How it ended, if it did.
    pub(crate) end: Option<End>,
}
