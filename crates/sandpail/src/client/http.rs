//! Calls of the daemon's HTTP API.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sandpail_spec::SecretKey;
use serde_json::Value;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Body};

use super::arguments::DaemonArgs;

/// How long a connection may take; answers may take as long as they need.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a path in a URL keeps as it is.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// What a value in a query keeps as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A daemon that can be called.
pub(crate) struct Client {
    agent: Agent,
    url: String,
    key: Option<SecretKey>,
}

/// A path as it stands in a URL.
pub(crate) fn path(text: &str) -> String {
    utf8_percent_encode(text, PATH).to_string()
}

/// A value as it stands in a query.
pub(crate) fn value(text: &str) -> String {
    utf8_percent_encode(text, VALUE).to_string()
}

impl Client {
    pub(crate) fn new(arguments: &DaemonArgs) -> anyhow::Result<Self> {
        let url = arguments.url.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("--url {url:?} must begin with http:// or https://");
        }
        let key = match &arguments.api_key_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read --api-key-file {}", file.display()))?;
                Some(SecretKey::new(text.trim()))
            }
            None => std::env::var("SANDPAIL_API_KEY").ok().filter(|key| !key.is_empty()).map(SecretKey::new),
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(concat!("sandpail/", env!("CARGO_PKG_VERSION")));
        if url.starts_with("https://") {
            let found = rustls_native_certs::load_native_certs();
            let certificates = found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
            let roots = RootCerts::new_with_certs(&certificates.collect::<Vec<_>>());
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { agent: config.build().new_agent(), url, key })
    }

    /// The URL of `path`, for a WebSocket.
    pub(crate) fn websocket_url(&self, path: &str) -> String {
        format!("{}{path}", self.url.replacen("http", "ws", 1))
    }

    /// The value of the `Authorization` header, if there is a key.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.key.as_ref().map(|key| format!("Bearer {}", key.expose()))
    }

    /// Sends a request; an answer that is no success becomes an error with the daemon's own words.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> anyhow::Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(authorization) = self.authorization() {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).context("this cannot be sent")?;
        let answer = self.agent.run(request).with_context(|| {
            format!("no answer from the daemon at {}; start it with `sandpail serve`, or name it with --url", self.url)
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let mut text = String::new();
        // An answer without a readable body still has its status.
        let _ = answer.into_body().into_reader().take(1 << 16).read_to_string(&mut text);
        let told = serde_json::from_str::<Value>(&text).ok();
        let told = told.as_ref().and_then(|answer| answer["error"].as_str());
        match told {
            Some("Unauthorized") => bail!("the daemon wants its key: set SANDPAIL_API_KEY, or give --api-key-file"),
            Some(error) => bail!("{error}"),
            None => bail!("the daemon answered {status}"),
        }
    }

    fn json(&self, method: &str, path: &str, body: impl AsSendBody) -> anyhow::Result<Value> {
        let answer = self.send(method, path, &[("content-type", "application/json")], body)?;
        let mut text = String::new();
        answer.into_body().into_reader().read_to_string(&mut text)?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{} is not a sandpail daemon", self.url))
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json("GET", path, ())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json("POST", path, body.to_string())
    }

    pub(crate) fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.json("DELETE", path, ()).map(drop)
    }
}
