//! Runs the real component, real Redis servers, real Sentinels and the real runner together.
//!
//! A test is a [`scenario`]: it gets a [`Lab`], starts its processes in the lab, and leaves nothing behind,
//! even if it fails.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! e2e::scenario(async |lab| {
//!     let system = lab.system(2, 3).await?;
//!     system.register_all().await?;
//!     let ran =
//!         lab.runner(["bootstrap", "--broker", &system.broker.url()]).run(Duration::from_secs(30)).await?;
//!     assert_eq!(ran.code, Some(0), "{ran}");
//!     assert_eq!(system.wrong("mymaster", 0).await, Vec::<String>::new());
//!     Ok(())
//! });
//! ```

mod broker;
mod browser;
mod containers;
mod eventually;
mod front;
mod haproxy;
mod held_stream;
pub mod host;
mod http;
mod lab;
mod latency;
mod local_host;
mod network;
mod node;
mod pods;
mod process;
mod proxy;
mod regions;
mod runner;
pub mod spin;
mod terminal;
mod timings;
mod tls;
mod verify;
mod watchdog;

pub use self::broker::{Broker, BrokerBuilder};
pub use self::browser::{Browser, Scheme};
pub use self::containers::{Containers, Engine, Secrets};
pub use self::eventually::{at_once, eventually};
pub use self::front::{Front, FrontBuilder};
pub use self::haproxy::HaProxy;
pub use self::held_stream::HeldStream;
pub use self::http::{Reply, Request};
pub use self::lab::{Lab, SCENARIO_LIMIT, System, scenario, scenario_within};
pub use self::latency::SlowLine;
pub use self::local_host::LocalHost;
pub use self::network::{Machine, Network};
pub use self::node::{Node, NodeBuilder, redis_version, steady_port};
pub use self::pods::Pods;
pub use self::process::{Process, is_running};
pub use self::proxy::{Fault, Held, Ledger, Proxy, Sent};
pub use self::regions::{Regions, Written};
pub use self::runner::{Ran, Runner, Running, runner_program};
pub use self::terminal::{Frame, Terminal};
pub use self::timings::Timings;
pub use self::tls::Tls;
pub use self::verify::{replicates, wrong};
pub use rustix::process::Signal;
