//! The examination of a bucket, step by step.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;
use sandpail_spec::Endpoint;
use sandpail_store::http::HttpStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, PutBody, Store};

use crate::cli::DoctorArgs;
use crate::profiles;
use crate::report;

/// From this difference on, signatures are refused by most providers after some minutes more.
const SKEW_NOTED: u64 = 60;

/// One step.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) what: &'static str,
    pub(crate) result: Result<String, String>,
    pub(crate) is_optional: bool,
}

/// Steps up to the first that fails.
struct Examination {
    steps: Vec<Step>,
}

/// A step has failed: nothing behind it can be told.
struct Stopped;

impl Examination {
    fn must(&mut self, what: &'static str, result: anyhow::Result<String>) -> Result<(), Stopped> {
        let stopped = result.as_ref().err().map(|_| Stopped);
        self.steps.push(Step { what, result: result.map_err(|error| report::in_one_line(&error)), is_optional: false });
        stopped.map_or(Ok(()), Err)
    }

    fn may(&mut self, what: &'static str, result: anyhow::Result<String>) {
        self.steps.push(Step { what, result: result.map_err(|error| report::in_one_line(&error)), is_optional: true });
    }

    fn need<T>(&mut self, what: &'static str, result: anyhow::Result<T>) -> Result<T, Stopped> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                self.must(what, Err(error))?;
                Err(Stopped)
            }
        }
    }
}

/// Examines a bucket up to the first step that fails.
pub(crate) fn probe(bucket: &str, arguments: &DoctorArgs) -> Vec<Step> {
    let mut examination = Examination { steps: Vec::new() };
    // Why it ended is the last step.
    let _ = examine(&mut examination, bucket, arguments);
    examination.steps
}

fn examine(examination: &mut Examination, bucket: &str, arguments: &DoctorArgs) -> Result<(), Stopped> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = examination.need("threads", runtime.map_err(Into::into))?;
    let plan = examination.need("credentials", crate::store::remote_plan(&arguments.store))?;
    examination.must("provider", Ok(format!("{} at {}", plan.provider(), plan.endpoint())))?;
    let endpoint = examination.need("endpoint", plan.endpoint().parse::<Endpoint>().map_err(Into::into))?;
    let address = (endpoint.host().trim_matches(['[', ']']), endpoint.port());
    let resolved = address.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let resolved = examination
        .need("resolve", resolved.with_context(|| format!("cannot resolve {}; check the name", endpoint.host())))?;
    examination.must("resolve", Ok(format!("{} has {} address(es)", endpoint.host(), resolved.len())))?;
    let connected = resolved.iter().map(|address| {
        let connected = TcpStream::connect_timeout(address, Duration::from_secs(10));
        connected.map(|_| format!("{address} answers")).with_context(|| format!("cannot connect to {address}"))
    });
    let first = connected.reduce(|found, next| found.or(next));
    examination.must("connect", first.unwrap_or_else(|| Err(anyhow::anyhow!("no address to connect to"))))?;
    let store = examination.need("bucket", plan.plain_store(bucket))?;
    if endpoint.is_tls() {
        let secured = runtime.block_on(store.check_connection()).map_err(anyhow::Error::from);
        let trust = if arguments.store.insecure { "NOT checked (--insecure)" } else { "trusted" };
        examination.must("TLS", secured.map(|()| format!("the certificate of {} is {trust}", endpoint.host())))?;
    } else {
        examination.may("TLS", Err(anyhow::anyhow!("none: keys are signed with, but data can be read on the way")));
    }
    let answer = runtime.block_on(store.first_answer()).map_err(anyhow::Error::from);
    let answer = examination.need("sign and list", answer)?;
    let server = answer.server.map_or_else(String::new, |server| format!(", served by {server}"));
    let signed = format!("{bucket} can be listed with these keys (region {}{server})", answer.region);
    examination.must("sign and list", Ok(signed))?;
    examination.may(
        "clock",
        match answer.clock_skew {
            Some(skew) if skew.unsigned_abs() >= SKEW_NOTED => Err(anyhow::anyhow!(
                "this machine is {} s {} the server; set its clock (timedatectl set-ntp true)",
                skew.unsigned_abs(),
                if skew > 0 { "behind" } else { "ahead of" },
            )),
            Some(_) => Ok("in step with the server's".to_owned()),
            None => Err(anyhow::anyhow!("the server does not say its time")),
        },
    );
    if arguments.write_probe {
        runtime.block_on(probe_writes(examination, &store, plan.endpoint()))?;
    }
    Ok(())
}

/// Writes, copies and removes objects under a name of its own, and keeps what that shows.
async fn probe_writes(examination: &mut Examination, store: &HttpStore, endpoint: &str) -> Result<(), Stopped> {
    let prefix = format!(".sandpail-probe-{}/", std::process::id());
    let key = examination.need("write", ObjectKey::new(format!("{prefix}first")).map_err(Into::into))?;
    let body = PutBody::from(bytes::Bytes::from_static(b"sandpail probe"));
    let written = store.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await;
    examination.must("write", written.map(|_| "objects can be written".to_owned()).map_err(Into::into))?;
    let probed = store.probe(&prefix).await.map_err(anyhow::Error::from);
    let (profile, steps) = examination.need("provider profile", probed)?;
    for step in steps {
        examination.may(step.what, step.result.map_err(Into::into));
    }
    let kept = profiles::write(endpoint, profile);
    examination.may("provider profile", kept.map(|file| format!("kept for mounts in {}", file.display())));
    Ok(())
}
