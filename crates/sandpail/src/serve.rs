//! `sandpail serve`: the daemon, its API, signals and logging.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use sandpail_daemon::{Config, Daemon, LogFormat};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::ServeArgs;
use crate::host;

pub(crate) fn run(arguments: &ServeArgs) -> anyhow::Result<()> {
    // Before it holds a key.
    sandpail_daemon::worker::secrecy::keep_memory_private().context("cannot keep the process's memory private")?;
    let config = configure(arguments)?;
    start_log(&config)?;
    host::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(serve(arguments, config))
}

/// The file, the environment, then the command line.
fn configure(arguments: &ServeArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(arguments.config.as_deref())?;
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    if let Some(dir) = &arguments.state_dir {
        config.state_dir = std::path::absolute(dir).context("--state-dir")?;
    }
    config.check()?;
    Ok(config)
}

async fn serve(arguments: &ServeArgs, config: Config) -> anyhow::Result<()> {
    let asked = config.listen;
    // First: a port that is taken must not start anything.
    let listener = TcpListener::bind(asked).await.with_context(|| format!("cannot listen on {asked}"))?;
    let listen: SocketAddr = listener.local_addr()?;
    let state_dir: PathBuf = config.state_dir.clone();
    let daemon = Daemon::start(Config { listen, ..config }).await?;
    tracing::info!(%listen, state_dir = %state_dir.display(), bindings = ?daemon.bindings(), "serving");
    println!("sandpail serves http://{listen}");
    let (stop, mut stopped) = watch::channel(false);
    let signals = tokio::spawn(on_signals(arguments.clone(), daemon.clone(), stop)?);
    let shutdown = async move {
        // An error means that nobody is left to say so: the same.
        let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
    };
    let served = sandpail_api::serve(daemon.clone(), listener, shutdown).await;
    signals.abort();
    let ended = daemon.stop(arguments.destroy_on_exit).await;
    served.context("the API ended")?;
    ended?;
    tracing::info!("ended");
    Ok(())
}

/// SIGHUP reads the configuration anew; SIGTERM and SIGINT end the daemon, and a second one ends it at once.
fn on_signals(
    arguments: ServeArgs,
    daemon: Daemon,
    stop: watch::Sender<bool>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let mut hup = signal(SignalKind::hangup())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hup.recv() => match configure(&arguments) {
                    Ok(config) => {
                        daemon.reload(config).await;
                        tracing::info!(bindings = ?daemon.bindings(), "the configuration was read anew");
                    }
                    Err(error) => tracing::error!(error = format!("{error:#}"), "the old configuration stays in force"),
                },
                _ = term.recv() => break,
                _ = int.recv() => break,
            }
        }
        tracing::info!("asked to end");
        if stop.send(true).is_err() {
            tracing::debug!("it ends already");
        }
    })
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let level = &config.log;
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .with_context(|| format!("unknown log level {level:?}: use error, warn, info, debug or trace"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot log: {error}"))
}
