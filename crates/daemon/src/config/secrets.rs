//! Secrets by name: `.dev.vars`, files of systemd credentials, then the environment. Values never print.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sandpail_spec::SecretKey;

use super::ConfigError;

/// Secrets by name: `.dev.vars`, files of systemd credentials, then the environment. Values never print.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    named: BTreeMap<String, SecretKey>,
    credentials_dir: Option<PathBuf>,
}

impl Secrets {
    /// Reads `.dev.vars` at `dev_vars` if there is one; `credentials_dir` is what systemd calls
    /// `$CREDENTIALS_DIRECTORY`, one file for each secret.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is there and makes no sense.
    pub fn read(dev_vars: &Path, credentials_dir: Option<PathBuf>) -> Result<Self, ConfigError> {
        let named = match std::fs::read_to_string(dev_vars) {
            Ok(text) => parse_dev_vars(&text)
                .map_err(|message| ConfigError::Invalid { place: dev_vars.display().to_string(), message })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(ConfigError::Read { path: dev_vars.to_owned(), source }),
        };
        Ok(Self { named, credentials_dir })
    }

    /// Adds a secret, which wins over every other of its name.
    pub fn set(&mut self, name: impl Into<String>, value: SecretKey) {
        self.named.insert(name.into(), value);
    }

    /// The secret of this name; files are read each time, so that a renewed one is seen.
    pub fn get(&self, name: &str) -> Option<SecretKey> {
        if let Some(value) = self.named.get(name) {
            return Some(value.clone());
        }
        let file = self.credentials_dir.as_ref().filter(|_| is_plain(name)).map(|dir| dir.join(name));
        if let Some(text) = file.and_then(|file| std::fs::read_to_string(file).ok()) {
            return Some(SecretKey::new(text.trim_end_matches(['\n', '\r'])));
        }
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(SecretKey::new)
    }
}

/// A name that stays in its directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// Reads the dotenv syntax: `NAME=value`, `export NAME=value`, comments, values in `'…'`, `"…"` or backticks, which may
/// go over several lines; in `"…"` stand `\n`, `\"` and the like.
fn parse_dev_vars(text: &str) -> Result<BTreeMap<String, SecretKey>, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start_matches('\u{feff}');
    let total = rest.len();
    while !rest.is_empty() {
        let line_number = || text.trim_start_matches('\u{feff}')[..total - rest.len()].matches('\n').count() + 1;
        let line = rest.split('\n').next().unwrap_or(rest);
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            rest = rest.get(line.len() + 1..).unwrap_or_default();
            continue;
        }
        // What is wrong is told without the line: it may hold the secret.
        let Some((name, _)) = line.split_once('=') else {
            return Err(format!("line {}: write NAME=value", line_number()));
        };
        let after_name = &rest[name.len() + 1..];
        let name = name.trim().strip_prefix("export ").unwrap_or(name.trim()).trim();
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        {
            return Err(format!("line {}: names hold letters, digits and _", line_number()));
        }
        let value = after_name.trim_start_matches([' ', '\t']);
        let quote = value.chars().next().filter(|first| matches!(first, '"' | '\'' | '`'));
        let (value, len) = match quote {
            Some(quote) => {
                quoted(value, quote).ok_or_else(|| format!("line {}: the quote does not end", line_number()))?
            }
            None => {
                let line = value.split('\n').next().unwrap_or(value);
                let bare = line.split_once(" #").map_or(line, |(before, _)| before).trim();
                (bare.to_owned(), line.len())
            }
        };
        let consumed = rest.len() - after_name.trim_start_matches([' ', '\t']).len() + len;
        // What follows a closing quote on its line is a comment.
        let behind = &rest[consumed..];
        let to_end = behind.find('\n').map_or(behind.len(), |at| at + 1);
        found.insert(name.to_owned(), SecretKey::new(value));
        rest = &behind[to_end..];
    }
    Ok(found)
}

/// The text between quotes, and how much of `text` it takes.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            _ if character == quote => return Some((value, at + 1)),
            '\\' if quote == '"' => match characters.next()?.1 {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dotenv_syntax() {
        let text = "# keys\nA=one\n export B = two words # comment\nC='it''s # raw\\n'\nD=\"x\\ny\\\"z\" # c\n\nE=\nF=a=b#c\n\
                    G=\"two\nlines\"\nH=`tick`\r\nI=last";
        let found = parse_dev_vars(text).unwrap();
        let values: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        let expected = [
            ("A", "one"),
            ("B", "two words"),
            ("C", "it"),
            ("D", "x\ny\"z"),
            ("E", ""),
            ("F", "a=b#c"),
            ("G", "two\nlines"),
            ("H", "tick"),
            ("I", "last"),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_secret() {
        for (text, expected) in [
            ("A=1\nhunter2\n", "line 2: write NAME=value"),
            ("\n\nA=\"hunter2\n", "line 3: the quote does not end"),
            ("a b=hunter2", "line 1: names hold letters, digits and _"),
        ] {
            assert_eq!(parse_dev_vars(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn files_of_credentials() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("API"), "s3cret\n").unwrap();
        let secrets = Secrets::read(&dir.path().join(".dev.vars"), Some(dir.path().to_owned())).unwrap();
        assert_eq!(secrets.get("API").unwrap().expose(), "s3cret");
        assert!(secrets.get("../API").is_none() && secrets.get("NOT_THERE_AT_ALL").is_none());
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }
}
