//! `sandpail demo`.

use crate::cli::DemoArgs;

pub(crate) fn run(_arguments: &DemoArgs) -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
