//! Egress policies of the configuration, and the secrets that policies name.

use std::collections::BTreeMap;

use sandpail_proxy::{EgressPolicy, HeaderSecret, HostName, HostPattern, Outbound};
use sandpail_spec::SecretKey;
use serde::Deserialize;

use super::Secrets;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEgress {
    enable_internet: bool,
    allowed_hosts: Vec<HostPattern>,
    denied_hosts: Vec<HostPattern>,
    outbound_by_host: BTreeMap<HostName, RawOutbound>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutbound {
    headers: BTreeMap<String, HeaderSecret>,
    #[serde(default)]
    allow_http: bool,
}

impl RawEgress {
    /// The policy, with secrets by their names; each of them is there.
    pub(super) fn checked(self, secrets: &Secrets) -> Result<EgressPolicy, String> {
        let outbound = |raw: RawOutbound| Outbound { headers: raw.headers, allow_http: raw.allow_http };
        let policy = EgressPolicy {
            enable_internet: self.enable_internet,
            allowed_hosts: self.allowed_hosts,
            denied_hosts: self.denied_hosts,
            outbound_by_host: self.outbound_by_host.into_iter().map(|(host, raw)| (host, outbound(raw))).collect(),
        };
        policy.check().map_err(|error| error.to_string())?;
        secrets.fill(policy.clone())?;
        Ok(policy)
    }
}

impl Secrets {
    /// Puts secrets in place of `${NAME}` in a policy's values.
    ///
    /// # Errors
    /// Names the header and the secret that is not there, or that makes no header.
    pub(crate) fn fill(&self, mut policy: EgressPolicy) -> Result<EgressPolicy, String> {
        for (host, outbound) in &mut policy.outbound_by_host {
            for (header, value) in &mut outbound.headers {
                let filled = fill(value.expose(), &|name| self.get(name));
                *value = HeaderSecret::new(filled.map_err(|name| {
                    let host = host.pattern();
                    format!(
                        "outboundByHost {host}: {header:?} names the secret {name:?}, which the daemon does not have"
                    )
                })?);
            }
        }
        policy.check().map_err(|error| error.to_string())?;
        Ok(policy)
    }
}

/// Puts secrets in place of their names; the name of one that is not there is the error.
fn fill(template: &str, secret: &dyn Fn(&str) -> Option<SecretKey>) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("${") {
        let Some((name, behind)) = behind.split_once('}') else { break };
        text.push_str(before);
        text.push_str(secret(name).ok_or_else(|| name.to_owned())?.expose());
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stand_where_they_are_named() {
        let secret = |name: &str| (name == "TOKEN").then(|| SecretKey::new("t0p"));
        assert_eq!(fill("Bearer ${TOKEN}", &secret).unwrap(), "Bearer t0p");
        assert_eq!(fill("${TOKEN}${TOKEN}!", &secret).unwrap(), "t0pt0p!");
        assert_eq!(fill("plain $TOKEN ${", &secret).unwrap(), "plain $TOKEN ${");
        assert_eq!(fill("a ${OTHER} b", &secret).unwrap_err(), "OTHER");
    }

    #[test]
    fn a_policy_of_the_configuration_has_its_secrets() {
        let mut secrets = Secrets::default();
        secrets.set("TOKEN", SecretKey::new("t0p"));
        secrets.set("BROKEN", SecretKey::new("two\nlines"));
        let checked = |value: &str| {
            let text = format!("outbound_by_host = {{ \"a.example\" = {{ headers = {{ X-Key = \"{value}\" }} }} }}");
            toml::from_str::<RawEgress>(&text).unwrap().checked(&secrets)
        };
        let policy = checked("Bearer ${TOKEN}").unwrap();
        let value = |policy: &EgressPolicy| policy.outbound_by_host.values().next().unwrap().headers["X-Key"].clone();
        assert_eq!(value(&policy).expose(), "Bearer ${TOKEN}", "a secret is looked up when it is needed");
        assert_eq!(value(&secrets.fill(policy).unwrap()).expose(), "Bearer t0p");
        for (text, named) in [("${NO_SUCH}", "\"NO_SUCH\""), ("${BROKEN}", "X-Key"), ("***", "***")] {
            let error = checked(text).unwrap_err();
            assert!(error.contains(named) && error.contains("a.example") && !error.contains("lines"), "{error}");
        }
    }
}
