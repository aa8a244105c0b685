//! Which files of a mount are stored when: rules `GLOB=CLASS`, as `--path-class` takes them.
//!
//! A glob is matched against the path below the mount, and against the directories above: what it matches, it matches with
//! everything below. The first rule that matches counts. Nothing below a `local` directory is of another class: what is
//! not in the bucket cannot hold something that is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

/// More rules than anybody writes, and few enough to be compiled at once.
const RULES_MAX: usize = 200;
/// The longest rule in bytes.
const RULE_LEN_MAX: usize = 1024;

/// What the preset `agent` stands for. `.git` comes first: a branch `target/x` is a file below `.git/refs/heads/target`.
pub const AGENT_RULES: [&str; 5] =
    ["**/.git/=write-back", "**/node_modules/=local", "**/target/=local", "**/__pycache__/=local", "**/.venv/=local"];

/// When a file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathClass {
    /// Closing waits for the bucket.
    Durable,
    /// Closing waits for the local disk; the file goes to the bucket a little later.
    WriteBack,
    /// Never: it is on the local disk only.
    Local,
}

impl PathClass {
    /// `durable`, `write-back` or `local`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::WriteBack => "write-back",
            Self::Local => "local",
        }
    }
}

impl FromStr for PathClass {
    type Err = UnknownPathClass;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Durable, Self::WriteBack, Self::Local];
        let found = all.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| UnknownPathClass { class: text.to_owned() })
    }
}

/// No class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown class {class:?}; use durable, write-back or local")]
pub struct UnknownPathClass {
    /// What was given.
    pub class: String,
}

/// A rule that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPathClass {
    /// No `=`.
    #[error("Invalid path class {rule:?}: write GLOB=CLASS, such as \"**/target/=local\"")]
    NoClass {
        /// The rule.
        rule: String,
    },
    /// Another class.
    #[error("Invalid path class {rule:?}: {source}")]
    Class {
        /// The rule.
        rule: String,
        /// Which.
        source: UnknownPathClass,
    },
    /// Nothing before the `=`.
    #[error("Invalid path class {rule:?}: the glob is empty; \"**\" stands for every path")]
    Empty {
        /// The rule.
        rule: String,
    },
    /// Parts that no path has.
    #[error("Invalid path class {rule:?}: no path below the mount has a part \"\", \".\" or \"..\"; leave it out")]
    Part {
        /// The rule.
        rule: String,
    },
    /// Not a glob.
    #[error("Invalid path class {rule:?}: {reason}; write \\ before a character that stands for itself")]
    Glob {
        /// The rule.
        rule: String,
        /// What is wrong.
        reason: String,
    },
    /// Too long.
    #[error("Invalid path class {begin:?}…: a rule has at most {RULE_LEN_MAX} bytes")]
    TooLong {
        /// How it begins.
        begin: String,
    },
    /// Too many.
    #[error(
        "Invalid path classes: {count} rules, at most {RULES_MAX} are taken; join globs as in \"**/{{a,b}}/=local\""
    )]
    TooMany {
        /// How many.
        count: usize,
    },
}

#[derive(Clone, Debug)]
struct Rule {
    text: String,
    class: PathClass,
    /// The glob ends in `/`: it matches directories only, and what is below.
    only_directories: bool,
}

/// Rules in their order. Without any, no path has a class.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct PathClasses {
    rules: Vec<Rule>,
    globs: GlobSet,
}

impl PathClasses {
    /// Reads rules `GLOB=CLASS`; with `agent` those of the preset come after them.
    ///
    /// # Errors
    /// [`InvalidPathClass`] for the first rule that is wrong.
    pub fn parse<S: AsRef<str>>(rules: &[S], agent: bool) -> Result<Self, InvalidPathClass> {
        let preset = AGENT_RULES.iter().copied().filter(|_| agent);
        let texts: Vec<&str> = rules.iter().map(AsRef::as_ref).chain(preset).collect();
        if texts.len() > RULES_MAX {
            return Err(InvalidPathClass::TooMany { count: texts.len() });
        }
        let mut globs = GlobSetBuilder::new();
        let mut rules = Vec::new();
        for text in texts {
            let (glob, rule) = parse_rule(text)?;
            globs.add(glob);
            rules.push(rule);
        }
        let globs = globs.build().map_err(|error| InvalidPathClass::Glob {
            rule: rules.iter().map(|rule| rule.text.as_str()).collect::<Vec<_>>().join(" "),
            reason: error.to_string(),
        })?;
        Ok(Self { rules, globs })
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether some rule gives this class.
    pub fn gives(&self, class: PathClass) -> bool {
        self.rules.iter().any(|rule| rule.class == class)
    }

    /// The globs of a class, as they were written.
    pub fn globs_of(&self, class: PathClass) -> impl Iterator<Item = &str> {
        let of_it = self.rules.iter().filter(move |rule| rule.class == class);
        of_it.map(|rule| rule.text.rsplit_once('=').map_or("", |(glob, _)| glob))
    }

    /// The rules as they were written.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.text.as_str())
    }

    /// The class of a path below the mount (`a/b`, no `/` in front). `None`: no rule says anything.
    pub fn class_of(&self, path: &[u8], is_directory: bool) -> Option<PathClass> {
        if self.rules.is_empty() || path.is_empty() {
            return None;
        }
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut first = usize::MAX;
        for end in ends.chain([path.len()]) {
            let is_directory = is_directory || end < path.len();
            let matching = self.globs.matches(OsStr::from_bytes(&path[..end]));
            let here = matching.into_iter().find(|at| is_directory || !self.rules[*at].only_directories);
            first = first.min(here.unwrap_or(usize::MAX));
            if self.rules.get(first).is_some_and(|rule| rule.class == PathClass::Local) {
                return Some(PathClass::Local);
            }
        }
        self.rules.get(first).map(|rule| rule.class)
    }
}

fn parse_rule(text: &str) -> Result<(globset::Glob, Rule), InvalidPathClass> {
    let rule = || text.to_owned();
    if text.len() > RULE_LEN_MAX {
        return Err(InvalidPathClass::TooLong { begin: text.chars().take(40).collect() });
    }
    let (written, class) = text.rsplit_once('=').ok_or_else(|| InvalidPathClass::NoClass { rule: rule() })?;
    let class = class.parse().map_err(|source| InvalidPathClass::Class { rule: rule(), source })?;
    let glob = written.strip_prefix('/').unwrap_or(written);
    let (glob, only_directories) = match glob.strip_suffix('/') {
        Some(glob) => (glob, true),
        None => (glob, false),
    };
    if glob.is_empty() {
        return Err(InvalidPathClass::Empty { rule: rule() });
    }
    if glob.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(InvalidPathClass::Part { rule: rule() });
    }
    let glob = GlobBuilder::new(glob).literal_separator(true).backslash_escape(true).build();
    let glob = glob.map_err(|error| InvalidPathClass::Glob { rule: rule(), reason: error.kind().to_string() })?;
    Ok((glob, Rule { text: rule(), class, only_directories }))
}

impl TryFrom<Vec<String>> for PathClasses {
    type Error = InvalidPathClass;

    fn try_from(rules: Vec<String>) -> Result<Self, Self::Error> {
        Self::parse(&rules, false)
    }
}

impl From<PathClasses> for Vec<String> {
    fn from(classes: PathClasses) -> Self {
        classes.rules.into_iter().map(|rule| rule.text).collect()
    }
}

impl PartialEq for PathClasses {
    fn eq(&self, other: &Self) -> bool {
        self.texts().eq(other.texts())
    }
}

#[cfg(test)]
mod tests {
    use super::PathClass::{Durable, Local, WriteBack};
    use super::*;

    /// `path` with `/` at its end is a directory's.
    #[track_caller]
    fn check(rules: &str, path: &str, class: Option<PathClass>) {
        let rules: Vec<&str> = rules.split(' ').filter(|rule| !rule.is_empty()).collect();
        let classes = PathClasses::parse(&rules, false).unwrap();
        let plain = path.trim_end_matches('/');
        assert_eq!(classes.class_of(plain.as_bytes(), plain != path), class, "{rules:?} {path}");
        // It travels as text.
        let json = serde_json::to_string(&classes).unwrap();
        assert_eq!(serde_json::from_str::<PathClasses>(&json).unwrap(), classes);
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        check("", "a/target/x", None);
        check("**/target/=local", "target/", Some(Local));
        check("**/target/=local", "a/b/target/", Some(Local));
        check("**/target/=local", "a/target/debug/deps/x.o", Some(Local));
        check("**/target/=local", "a/targets/x", None);
        // A file of the name is none of it.
        check("**/target/=local", "a/target", None);
        check("**/target=local", "a/target", Some(Local));
        check("target/=local", "target/x", Some(Local));
        check("/target/=local", "target/x", Some(Local));
        check("target/=local", "a/target/x", None);
        check("*.o=local", "a.o", Some(Local));
        check("*.o=local", "a/b.o", None);
        check("**/*.{o,pyc}=local", "a/b.pyc", Some(Local));
        check("a/*/c=local", "a/b/c/d", Some(Local));
        check("a/*/c=local", "a/b/b/c/d", None);
        check("**=local", "anything", Some(Local));
        check("**/a=b=local", "x/a=b", Some(Local));
        check("**/[!a]x=write-back", "bx", Some(WriteBack));
        check("**/.git/=write-back **/target/=local", "r/.git/refs/heads/target/x", Some(WriteBack));
        check("**/target/=local **/.git/=write-back", "r/.git/refs/heads/target/x", Some(Local));
        check("keep/=durable **/keep/=local", "keep/a", Some(Durable));
        check("keep/=durable **/keep/=local", "a/keep/a", Some(Local));
        // Nothing in a local directory is in the bucket.
        check("**/.git/=write-back **/node_modules/=local", "node_modules/x/.git/HEAD", Some(Local));
        check("**/keep=durable **/target/=local", "target/keep", Some(Local));
    }

    #[test]
    fn the_preset_comes_after_the_rules() {
        let classes = PathClasses::parse(&["target/=durable"], true).unwrap();
        let class = |path: &str| classes.class_of(path.as_bytes(), false);
        assert_eq!((class("target/x"), class("a/target/x")), (Some(Durable), Some(Local)));
        assert_eq!((class(".git/HEAD"), class("src/main.rs")), (Some(WriteBack), None));
        assert_eq!(class(".git"), None);
        for directory in ["node_modules", "__pycache__", ".venv"] {
            assert_eq!(class(&format!("a/{directory}/x")), Some(Local));
        }
        assert!(classes.gives(Local) && classes.gives(WriteBack) && !classes.is_empty());
        assert_eq!(classes.globs_of(Durable).collect::<Vec<_>>(), ["target/"]);
    }

    #[test]
    fn names_that_are_no_text_match() {
        let classes = PathClasses::parse(&["**/target/=local"], false).unwrap();
        assert_eq!(classes.class_of(b"\xff/target/\xfe", false), Some(Local));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (rule, text) in [
            ("target", "Invalid path class \"target\": write GLOB=CLASS, such as \"**/target/=local\""),
            ("a=fast", "Invalid path class \"a=fast\": unknown class \"fast\"; use durable, write-back or local"),
            ("a=", "Invalid path class \"a=\": unknown class \"\"; use durable, write-back or local"),
            ("=local", "Invalid path class \"=local\": the glob is empty; \"**\" stands for every path"),
            ("/=local", "Invalid path class \"/=local\": the glob is empty; \"**\" stands for every path"),
        ] {
            assert_eq!(PathClasses::parse(&[rule], false).unwrap_err().to_string(), text);
        }
        for (rule, words) in [
            ("../x=local", "\"..\"; leave it out"),
            ("a/./x=local", "no path below the mount"),
            ("a//x=local", "no path below the mount"),
            ("a[=local", "\"a[=local\": "),
            ("{a=local", "\"{a=local\": "),
        ] {
            let text = PathClasses::parse(&[rule], false).unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        }
        let long = format!("{}=local", "x".repeat(RULE_LEN_MAX));
        assert!(matches!(PathClasses::parse(&[&long], false), Err(InvalidPathClass::TooLong { .. })));
        assert!(matches!(PathClasses::parse(&["a=local"; 201], false), Err(InvalidPathClass::TooMany { count: 201 })));
    }
}
