//! Errors of parsers, told without what stands in the file: a line, or a value, may be a secret.

/// Says what is wrong with a TOML text, and where, without a word of the text but names of keys.
pub(super) fn toml_error(error: &toml::de::Error, text: &str) -> String {
    let message = without_value(error.message());
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            format!("line {line}, column {column}: {message}")
        }
        None => message,
    }
}

/// The same for a message alone. Serde's begin with the kind of the value, have the value, and end in what was expected.
pub(super) fn without_value(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: ", "unknown variant "] {
        let Some(rest) = message.strip_prefix(kind) else { continue };
        // The value may hold anything, also these words: the last ones are serde's. Only they, and a word of the kind.
        let expected = rest.rsplit_once(", expected ").map(|(_, expected)| expected).unwrap_or("something else");
        let what = rest.split([' ', ',']).next().filter(|word| KINDS.contains(word)).unwrap_or("a value");
        let kind = kind.trim_end_matches([':', ' ']);
        return format!("{kind}: {what}, expected {expected}");
    }
    message.trim_end().to_owned()
}

/// What serde calls values.
const KINDS: [&str; 8] = ["string", "integer", "boolean", "map", "sequence", "character", "null", "unit"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_repeated() {
        for (message, expected) in [
            ("invalid type: string \"hunter2\", expected u64", "invalid type: string, expected u64"),
            ("invalid type: string \"a, expected hunter2\", expected u64", "invalid type: string, expected u64"),
            ("invalid value: integer `4711`, expected a port", "invalid value: integer, expected a port"),
            (
                "unknown variant `hunter2`, expected `text` or `json`",
                "unknown variant: a value, expected `text` or `json`",
            ),
            ("unknown field `listne`, expected one of `listen`", "unknown field `listne`, expected one of `listen`"),
        ] {
            assert_eq!(without_value(message), expected);
        }
    }
}
