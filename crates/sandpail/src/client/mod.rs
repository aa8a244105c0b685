//! `sandpail sandbox …`: what people do with the sandboxes of a running daemon, through its HTTP API.

mod arguments;
mod copy;
mod exec;
mod http;
mod shell;

use std::process::ExitCode;

use anyhow::Context;
use sandpail_spec::PathClasses;
use serde_json::{Value, json};

pub(crate) use self::arguments::{SandboxArgs, SandboxCommand};
use self::http::Client;

/// Runs one command; `exec` and `shell` end with the exit code of what they ran.
pub(crate) fn run(arguments: SandboxArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.daemon)?;
    match arguments.command {
        SandboxCommand::Create => {
            let made = client.post("/v1/sandbox", &json!({}))?;
            println!("{}", made["id"].as_str().context("the daemon made a sandbox without an id")?);
        }
        SandboxCommand::List => list(&client)?,
        SandboxCommand::Exec(exec) => return exec::run(&client, &exec),
        SandboxCommand::Shell(shell) => return shell::run(&client, &shell),
        SandboxCommand::Mount(mount) => {
            client.post(&format!("/v1/sandbox/{}/mount", mount.id), &mount_body(&mount)?)?;
        }
        SandboxCommand::Unmount { id, path, force } => {
            let body = json!({ "mountPath": path, "force": force });
            let answer = client.post(&format!("/v1/sandbox/{id}/unmount"), &body)?;
            print_not_stored(&answer["notStored"], "unmounted all the same; kept on the daemon's host");
        }
        SandboxCommand::Sync { id, path } => {
            let answer = client.post(&format!("/v1/sandbox/{id}/mounts/sync"), &json!({ "mountPath": path }))?;
            if answer["ok"].as_bool() != Some(true) {
                print_not_stored(&answer["failed"], "tried again as long as it is mounted");
                return Ok(ExitCode::FAILURE);
            }
            println!("everything is stored ({} file(s) just now)", answer["stored"]);
        }
        SandboxCommand::Cp { from, to, recursive } => copy::run(&client, &from, &to, recursive)?,
        SandboxCommand::Destroy { ids } => {
            for id in ids {
                client.delete(&format!("/v1/sandbox/{id}")).with_context(|| format!("cannot destroy {id}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_not_stored(files: &Value, what_now: &str) {
    let files = files.as_array().map(Vec::as_slice).unwrap_or_default();
    if files.is_empty() {
        return;
    }
    eprintln!("sandpail: {} file(s) could not be stored ({what_now}):", files.len());
    for file in files {
        let text = |name: &str| file[name].as_str().unwrap_or_default();
        eprintln!("  {}: {}", text("path"), text("reason"));
    }
}

fn list(client: &Client) -> anyhow::Result<()> {
    let answer = client.get("/v1/sandbox")?;
    let sandboxes = answer["sandboxes"].as_array().context("the daemon's list is no list")?;
    if sandboxes.is_empty() {
        println!("no sandboxes");
    }
    for sandbox in sandboxes {
        let id = sandbox["id"].as_str().unwrap_or_default();
        let state = if sandbox["running"].as_bool() == Some(true) { "running" } else { "not started" };
        println!("{id}\t{state}");
        let mounts = client.get(&format!("/v1/sandbox/{id}/mounts"))?;
        for mount in mounts["mounts"].as_array().into_iter().flatten() {
            let text = |name: &str| mount[name].as_str().unwrap_or_default();
            let name = mount["binding"].as_str().unwrap_or_else(|| text("bucket"));
            let access = if mount["readOnly"].as_bool() == Some(true) { ", read-only" } else { "" };
            println!("\t{}\t{name}{}\t{}{access}", text("mountPath"), text("prefix"), text("state"));
        }
    }
    Ok(())
}

/// The request of a mount: with an endpoint its bucket, else a binding.
fn mount_body(mount: &arguments::MountArgs) -> anyhow::Result<Value> {
    let mut options = json!({});
    let mut set = |name: &str, value: Value| options[name] = value;
    if let Some(endpoint) = &mount.endpoint {
        set("endpoint", json!(endpoint));
    }
    if let Some(prefix) = &mount.prefix {
        set("prefix", json!(prefix));
    }
    if mount.read_only {
        set("readOnly", json!(true));
    }
    if mount.credential_proxy {
        set("credentialProxy", json!(true));
    }
    if mount.write_back {
        set("writeBack", json!(true));
    }
    if !mount.path_classes.is_empty() {
        // Said here, with the words of the command line.
        PathClasses::parse(&mount.path_classes, false)?;
        let rules = mount.path_classes.iter().filter_map(|rule| rule.rsplit_once('='));
        set("pathClasses", rules.map(|(glob, class)| json!({ "glob": glob, "class": class })).collect());
    }
    if mount.agent {
        set("agent", json!(true));
    }
    if mount.local {
        set("localBucket", json!(true));
    }
    if !mount.s3fs_options.is_empty() {
        set("s3fsOptions", json!(mount.s3fs_options));
    }
    if mount.send_keys {
        let found = sandpail_spec::Credentials::from_variables(|name| std::env::var(name).ok());
        let keys = found.context("--send-keys finds no AWS_* or R2_* pair in the environment")?;
        let mut credentials =
            json!({ "accessKeyId": keys.access_key_id, "secretAccessKey": keys.secret_access_key.expose() });
        if let Some(token) = &keys.session_token {
            credentials["sessionToken"] = json!(token.expose());
        }
        set("credentials", credentials);
    }
    let source = if mount.endpoint.is_some() { "bucket" } else { "binding" };
    let mut body = json!({ "mountPath": mount.path, "options": options });
    body[source] = json!(mount.source);
    Ok(body)
}
