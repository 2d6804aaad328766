//! Answers balancers, probes and dashboards by HTTP, and runs the operator's command when roles change.
//!
//! | module | does | I/O |
//! | --- | --- | --- |
//! | [`seen`] | keeps the last answers of the server and the Sentinels | no |
//! | [`watch`] | looks at the server and the Sentinels, again and again | yes |
//! | [`judge`] | decides yes or no from the last answers, and gives the reason | no |
//! | [`serve`] | answers HTTP from the last answers; no request waits for a node | yes |
//! | [`metrics`] | writes the last answers as metrics | no |
//! | [`change`] | derives what has happened from one state to the next | no |
//! | [`hook`] | runs the operator's command for each change | yes |

mod change;
mod hook;
mod judge;
mod metrics;
mod seen;
mod serve;
mod watch;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use broker_fn::api::Kind;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::hook::Facts;
use self::seen::{SeenNodes, ServerPhase};
use self::watch::{Watch, add_sentinels};
use super::ask::OwnAddresses;
use super::config::{JoinConfig, reached_at};
use super::decide::Start;
use super::process::Ended;
use super::server_command::ServerSettings;
use crate::node::connection::{Connections, Unobserved};
use crate::node::endpoint::Endpoint;
use crate::node::hello::Hello;
use crate::report::Report;
use crate::system::servers::Servers;

/// The last answers about this node, and the tasks that ask and report.
#[derive(Debug)]
pub struct Health {
    seen: channel::Sender<SeenNodes>,
    /// The Sentinels to ask.
    sentinels: channel::Sender<BTreeSet<Endpoint>>,
    /// The group of the system, as these Sentinels report it.
    group: channel::Sender<Option<String>>,
    /// The tasks end when this value is dropped.
    tasks: JoinSet<()>,
}

impl Health {
    /// Answers HTTP from now on, if that was asked for.
    pub fn new(config: &JoinConfig, report: &Report) -> Self {
        let named: BTreeSet<Endpoint> = config.named.iter().map(Endpoint::from).collect();
        let group = config.brokers.first().and_then(|at| at.group.as_ref()).map(ToString::to_string);
        let seen = channel::Sender::new(SeenNodes::new(config.kind, config.sentinels));
        let mut tasks = JoinSet::new();
        if let Some(addr) = config.health
            && !config.dry_run
        {
            tasks.spawn(serve::serve(addr, seen.subscribe(), report.clone()));
        }
        Self { seen, sentinels: channel::Sender::new(named), group: channel::Sender::new(group), tasks }
    }

    /// The server has not been started, for this reason.
    pub fn waits(&self, why: &str) {
        self.seen.send_modify(|seen| seen.phase = ServerPhase::Waits(why.to_owned()));
    }

    /// The server was started, and is watched from now on. `ended` reports the other children of this process
    /// that end.
    pub fn started(
        &mut self,
        config: &JoinConfig,
        settings: &ServerSettings,
        start: &Start,
        own_addresses: OwnAddresses,
        report: &Report,
        ended: Ended,
    ) {
        self.seen.send_modify(|seen| seen.phase = ServerPhase::Runs);
        if config.health.is_none() && config.on_event.is_none() {
            return;
        }
        let connections = |access| Connections::new(access, Arc::new(Unobserved));
        let watch = Arc::new(Watch {
            seen: self.seen.clone(),
            sentinels: self.sentinels.clone(),
            named: config.named.iter().map(Endpoint::from).collect(),
            group: self.group.clone(),
            servers: Servers {
                redis: connections(config.access(Kind::Redis)),
                sentinels: connections(config.access(Kind::Sentinel)),
                timings: Arc::clone(report.timings()),
            },
            own: connections(config.own_access()),
            reached_at: reached_at(config, settings),
            reached: AtomicUsize::new(0),
            own_addresses,
            lookups: Mutex::default(),
            switched: channel::Sender::new(0),
        });
        self.tasks.spawn(Arc::clone(&watch).ask_server());
        if config.kind == Kind::Redis {
            self.tasks.spawn(Arc::clone(&watch).ask_sentinels());
            self.tasks.spawn(Arc::clone(&watch).measure_lag());
            self.tasks.spawn(Arc::clone(&watch).ask_rival());
            self.tasks.spawn(Arc::clone(&watch).warn(report.clone()));
        }
        if let Some(command) = &config.on_event {
            let facts = Facts {
                node: config.announce.as_ref().map_or_else(|| watch.reached_at[0].clone(), Endpoint::from),
                group: self.group.subscribe(),
                starts_as_no_master: matches!(start, Start::Held | Start::Follow { .. }),
            };
            let hook = hook::run(command.clone(), facts, self.seen.subscribe(), ended, report.clone());
            self.tasks.spawn(hook);
        }
    }

    /// A Sentinel watches this server. Its name for the group is used, unless Sentinels that know this server
    /// have answered for a group of another name.
    pub fn heard(&self, hello: &Hello) {
        let is_heard = self.seen.borrow().fresh(Instant::now()).next().is_some();
        self.group.send_if_modified(|group| {
            let is_new = !is_heard && group.as_deref() != Some(&hello.group);
            if is_new {
                *group = Some(hello.group.clone());
            }
            is_new
        });
        add_sentinels(&self.sentinels, [hello.sentinel.clone()]);
    }
}
