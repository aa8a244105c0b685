//! Errors as people read them.

/// An error and its causes in one line, each said once: some texts hold their cause's already.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        assert_eq!(in_one_line(&anyhow!("no route").context("cannot reach x")), "cannot reach x: no route");
        assert_eq!(in_one_line(&anyhow!("no route").context("cannot reach x: no route")), "cannot reach x: no route");
    }
}
