//! Serves the component on a machine without `spin`: a stand-in for `spin up` in tests and the demo.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::host::{COMPONENT, Host, MANIFEST, Program, StoreAt, component_of};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves the Sentinel Broker component over HTTP without Spin, for tests and the demo.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    up: Option<Up>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// The component to serve.
    #[arg(long, value_name = "PATH", default_value = COMPONENT, hide_default_value = true)]
    component: PathBuf,
    /// The key-value store: a SQLite file, `:memory:`, or a Redis server, like `redis://127.0.0.1:6379`.
    #[arg(long, value_name = "PATH|URL", default_value = ":memory:")]
    store: String,
    /// A value for a variable that `spin.toml` declares; may be given more than once.
    #[arg(long = "variable", value_name = "K=V", value_parser = key_value)]
    variables: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum Up {
    /// Behaves like `spin up`: variables come from `SPIN_VARIABLE_…`, the store is a file in the folder
    Up {
        #[arg(long, value_name = "MANIFEST")]
        from: PathBuf,
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
        listen: SocketAddr,
        #[arg(long, value_name = "FOLDER")]
        state_dir: PathBuf,
    },
}

/// What is served, and at which address.
struct Site {
    listen: SocketAddr,
    manifest: PathBuf,
    component: PathBuf,
    store: String,
    variables: BTreeMap<String, String>,
}

impl Args {
    fn site(self) -> Result<Site> {
        let Self { up, listen, component, store, variables } = self;
        let Some(Up::Up { from, listen, state_dir }) = up else {
            let (manifest, variables) = (MANIFEST.into(), variables.into_iter().collect());
            return Ok(Site { listen, manifest, component, store, variables });
        };
        let named = |(name, value): (String, String)| {
            Some((name.strip_prefix("SPIN_VARIABLE_")?.to_lowercase(), value))
        };
        Ok(Site {
            listen,
            component: component_of(&from)?,
            store: state_dir.join("sqlite_key_value.db").to_string_lossy().into_owned(),
            variables: std::env::vars().filter_map(named).collect(),
            manifest: from,
        })
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected `NAME=VALUE`")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[tokio::main]
async fn main() -> Result<()> {
    let Site { listen, manifest, component, store, variables } = Args::parse().site()?;
    // Set up before anything that takes time, so that a signal never meets the default action.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Bound before compiling, so that a port in use is reported at once.
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let (program, store) = (Program::load(&component)?, StoreAt::from(store.as_str()));
    let host = Host::new(&program, &manifest, &store, &variables)?;
    println!("listening on http://{}", listener.local_addr()?);
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    host.serve(listener, shutdown).await?;
    Ok(())
}
