//! Serves the component on a machine without `spin`: a stand-in for `spin up` in tests and the demo.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use e2e::host::{COMPONENT, Host, MANIFEST, Program, StoreAt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves the Sentinel Broker component over HTTP without Spin, for tests and the demo.
#[derive(Parser)]
struct Args {
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

fn key_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected `NAME=VALUE`")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[tokio::main]
async fn main() -> Result<()> {
    let Args { listen, component, store, variables } = Args::parse();
    // Before anything that takes time, so that a signal never finds the default action.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Taken before compiling: a port in use is said at once.
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let variables: BTreeMap<_, _> = variables.into_iter().collect();
    let (program, store) = (Program::load(&component)?, StoreAt::from(store.as_str()));
    let host = Host::new(&program, Path::new(MANIFEST), &store, &variables)?;
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
