//! From the arguments that say where a bucket is to the way that leads there.

use std::path::PathBuf;

use anyhow::{Context, bail};
use sandpail_daemon::worker::backend::{Keys, RemotePlan};
use sandpail_spec::{Credentials, Endpoint, Provider};

use crate::cli::StoreArgs;

/// Finds endpoint and keys: arguments first, then the environment.
pub(crate) fn remote_plan(arguments: &StoreArgs) -> anyhow::Result<RemotePlan> {
    let region = arguments.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    let endpoint = match &arguments.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => match variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL")) {
            Some(url) => url.parse().context("AWS_ENDPOINT_URL")?,
            None => {
                let region = region.as_deref().unwrap_or("us-east-1");
                format!("https://s3.{region}.amazonaws.com").parse::<Endpoint>()?
            }
        },
    };
    let provider = arguments.provider.unwrap_or_else(|| Provider::detect(endpoint.host()));
    // A region of the environment is Amazon's; elsewhere only one that was asked for counts.
    let region = if provider == Provider::S3 { region } else { arguments.region.clone() };
    if let Some(file) = arguments.ca_file.as_ref().filter(|file| !file.is_file()) {
        bail!("--ca-file {} does not exist", file.display());
    }
    let path_style = match (arguments.path_style, arguments.virtual_host) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    Ok(RemotePlan {
        endpoint: endpoint.to_string(),
        provider: provider.to_string(),
        region,
        path_style,
        ca_file: arguments.ca_file.as_ref().map(std::path::absolute).transpose()?,
        insecure: arguments.insecure,
        max_connections: arguments.max_connections.max(1),
        connect_timeout: None,
        stall_timeout: None,
        keys: keys(arguments, provider)?,
    })
}

fn keys(arguments: &StoreArgs, provider: Provider) -> anyhow::Result<Keys> {
    if arguments.anonymous {
        return Ok(Keys::Nobody);
    }
    if let Some(profile) = &arguments.profile {
        return Ok(Keys::Aws { profile: Some(profile.clone()) });
    }
    if let Some(keys) = Credentials::from_variables(|name| std::env::var(name).ok()) {
        return Ok(keys.into());
    }
    if let Some(profile) = variable("AWS_PROFILE") {
        return Ok(Keys::Aws { profile: Some(profile) });
    }
    // Machines of Amazon's have keys that need no setting up; elsewhere nobody waits for a metadata service.
    if provider == Provider::S3 || ROLE_VARIABLES.iter().any(|name| variable(name).is_some()) {
        return Ok(Keys::Aws { profile: None });
    }
    if has_aws_files() {
        return Ok(Keys::Aws { profile: Some("default".to_owned()) });
    }
    bail!(
        "No credentials found. Set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY or AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY environment variables, name a profile with --profile, or use --anonymous for \
         a public bucket."
    );
}

/// Variables that name a role to take on.
const ROLE_VARIABLES: [&str; 3] =
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

/// Whether Amazon's tools have been set up for this user.
fn has_aws_files() -> bool {
    let files = [("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")];
    files.into_iter().any(|(name, file)| {
        let usual = || Some(PathBuf::from(variable("HOME")?).join(".aws").join(file));
        variable(name).map(PathBuf::from).or_else(usual).is_some_and(|file| file.is_file())
    })
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
