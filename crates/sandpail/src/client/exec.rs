//! `sandpail sandbox exec`: output as it comes, and the command's own exit code.

use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::arguments::ExecArgs;
use super::http::Client;

pub(crate) fn run(client: &Client, arguments: &ExecArgs) -> anyhow::Result<ExitCode> {
    let mut body = json!({ "argv": argv(arguments), "scope": "sandbox" });
    if let Some(cwd) = &arguments.cwd {
        body["cwd"] = json!(cwd);
    }
    if let Some(timeout) = arguments.timeout {
        body["timeout_ms"] = json!(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1));
    }
    if !arguments.env.is_empty() {
        let mut env = serde_json::Map::new();
        for variable in &arguments.env {
            let (name, value) = variable
                .split_once('=')
                .with_context(|| format!("--env {variable:?} must have the form NAME=VALUE"))?;
            env.insert(name.to_owned(), json!(value));
        }
        body["env"] = Value::Object(env);
    }
    let mut headers = vec![("content-type", "application/json")];
    if let Some(session) = &arguments.session {
        headers.push(("session-id", session));
    }
    let path = format!("/v1/sandbox/{}/exec", arguments.id);
    let answer = client.send("POST", &path, &headers, body.to_string())?;
    let mut events = BufReader::new(answer.into_body().into_reader()).lines();
    let mut kind = String::new();
    while let Some(line) = events.next().transpose().context("the connection to the daemon broke")? {
        if let Some(name) = line.strip_prefix("event:") {
            name.trim().clone_into(&mut kind);
        } else if let Some(data) = line.strip_prefix("data:")
            && let Some(code) = event(&kind, data.trim())?
        {
            return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
        }
    }
    bail!("the daemon's answer ended before the command did")
}

/// One word is for the shell, and in a session for the session's own; more are a program and its arguments.
fn argv(arguments: &ExecArgs) -> Vec<String> {
    match arguments.command.as_slice() {
        [line] if arguments.session.is_some() => vec!["eval".to_owned(), line.clone()],
        [line] => vec!["bash".to_owned(), "-c".to_owned(), line.clone()],
        words => words.to_vec(),
    }
}

/// Writes output through; returns the exit code with the last event.
fn event(kind: &str, data: &str) -> anyhow::Result<Option<i64>> {
    match kind {
        "stdout" => write_through(&mut std::io::stdout(), data)?,
        "stderr" => write_through(&mut std::io::stderr(), data)?,
        "exit" => {
            let told: Value = serde_json::from_str(data)?;
            return Ok(Some(told["exit_code"].as_i64().context("an exit without a code")?));
        }
        "error" => {
            let told: Value = serde_json::from_str(data)?;
            bail!("{}", told["error"].as_str().unwrap_or("the command could not be run"));
        }
        _ => {}
    }
    Ok(None)
}

fn write_through(to: &mut impl Write, data: &str) -> anyhow::Result<()> {
    let bytes = BASE64.decode(data).context("the daemon sent output that is not base64")?;
    to.write_all(&bytes)?;
    to.flush()?;
    Ok(())
}
