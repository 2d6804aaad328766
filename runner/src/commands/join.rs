//! `join`: starts a Redis server or a Sentinel as a member of its system, or as one that is to become a
//! member.
//!
//! | module | does | I/O |
//! | --- | --- | --- |
//! | [`config`] | resolves the command line | files |
//! | [`ask`] | asks the broker, the Sentinels, and the servers that they name | yes |
//! | [`disk`] | looks at what the server would load | files |
//! | [`decide`] | decides how this node starts, from the answers and this node's own state | no |
//! | [`launch`] | prepares the command, and what else the server is given | files |
//! | [`hold`] | finds the role of a server that was started held | yes |
//! | [`late_sentinel`] | makes a Sentinel that started alone monitor what the others monitor | yes |
//! | [`journal`] | notes how far the append-only file goes; `journal_keeper` keeps the journal | files |
//! | [`process`] | runs the server, and passes signals on | yes |
//! | [`registration`] | registers the node once it answers, and keeps it registered | yes |
//! | [`handover`] | hands the master's role over before the server is stopped | yes |
//! | [`health`] | answers balancers, probes and Prometheus, and runs a command when roles change | yes |
//! | [`systemd`] | notifies systemd when the node waits, and when it serves | yes |
//!
//! `server_command` reads the server's command and file as the server does. `config_line` reads and writes
//! one line of such a file. `sentinel_file` writes a Sentinel's file.

mod ask;
mod config;
mod config_line;
mod decide;
mod disk;
mod handover;
mod health;
mod hold;
mod journal;
mod journal_keeper;
mod late_sentinel;
mod launch;
mod position;
mod process;
mod registration;
mod sentinel_file;
mod server_command;
mod systemd;
#[cfg(test)]
mod test_files;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use broker_fn::api::{Group, Kind};
use futures::future::{join_all, try_join_all};
use tokio::time::Instant;

use self::ask::{Asker, OwnAddresses};
pub use self::config::JoinConfig;
use self::config::{concrete, reached_at};
use self::decide::{
    Heard, InGroup, List, Start, This, ThisRedis, can_be_held_meanwhile, how_to_start, unheard,
};
use self::disk::{disk, position_on_disk};
use self::health::Health;
use self::hold::HeldMaster;
use self::journal::Journal;
use self::launch::{Launch, describe_start, is_usable_here};
use self::process::{ServerProcess, Signals};
use self::registration::{Registrar, StartedRedis, jittered};
use self::server_command::ServerSettings;
use crate::broker::watch::RosterWatch;
use crate::broker::{Broker, BrokerAt};
use crate::error::Failure;
use crate::node::connection::Connections;
use crate::node::redis::DEFAULT_PRIORITY;
use crate::report::Report;
use crate::report::document::{Ending, LaunchJson};

/// How long a server waits for its role before it is held. Nodes that start at the same moment answer within
/// this time, and then the server starts in its role.
const HELD_AFTER: Duration = Duration::from_millis(500);

/// How long a Sentinel that knows what to monitor in one of its groups waits for another group.
const OTHER_GROUP_WITHIN: Duration = Duration::from_secs(2);

/// Starts the server as soon as it is clear how, and ends with the server's exit code.
///
/// # Errors
///
/// If the server is not started.
pub async fn join(config: &JoinConfig, report: &Report) -> Result<Ending, Failure> {
    let mut signals = Signals::new().map_err(Failure::Other)?;
    let settings = config.command.settings().map_err(Failure::Other)?;
    let own_addresses = OwnAddresses {
        announce: config.announce.clone(),
        port: config.port,
        bind: concrete(settings.all("bind")),
    };
    let askers = askers(config, &own_addresses, report).map_err(Failure::Other)?;
    let mut health = Health::new(config, report);
    let starts = until_all_clear(config, &askers, &mut signals, &health, report).await?;
    // The settings are read again: the wait may have been long.
    let settings = config.command.settings().map_err(Failure::Other)?;
    let is_held = starts.iter().any(|is| is.start == Start::Held);
    let held_master = if is_held { HeldMaster::listen().await } else { HeldMaster::default() };
    let launch = Launch::new(config, &settings, &starts, held_master.port());
    let decision = describe_starts(&starts, &settings);
    if config.dry_run {
        let commands = launch.dry_run(&starts);
        report.result(if commands.is_empty() { decision.clone() } else { commands.join("\n") });
        return Ok(Ending::Decided(LaunchJson { decision, commands }));
    }
    systemd::send_status(&decision);
    report.event(decision);
    launch.write_file()?;
    // This is read before the server starts, because the server changes its files when it runs.
    let mut redis = (config.kind == Kind::Redis).then(|| started_redis(config, &settings));
    let server = ServerProcess::start(&launch.words, launch.input.as_deref()).map_err(Failure::Other)?;
    health.started(config, &settings, &starts[0].start, own_addresses, report, server.others());
    let connections = Connections::new(config.own_access(), Arc::new(report.clone()));
    let registrars =
        askers.iter().zip(&starts).enumerate().map(|(index, (asker, InGroup { start, group }))| Registrar {
            broker: &asker.broker,
            connections: &connections,
            reached_at: reached_at(config, &settings),
            announce: config.announce.clone(),
            port: config.port,
            start,
            group: group.as_ref(),
            is_first: index == 0,
            in_group: group
                .as_ref()
                .filter(|_| starts.len() > 1)
                .map(|group| format!(" in {group}"))
                .unwrap_or_default(),
            promotes: launch.promotes,
            asker,
            health: &health,
            expected: config.expected(),
            redis: redis.take(),
            ready_at: OnceLock::new(),
            poll_interval: config.poll_interval,
            report,
            watched: Mutex::default(),
        });
    let registrars: Vec<Registrar<'_>> = registrars.collect();
    let hand_over_before_stop =
        join_all(registrars.iter().map(|registrar| registrar.hand_over_before_stop(config.handover)));
    let keep = join_all(registrars.iter().map(Registrar::keep));
    tokio::select! {
        code = server.ended(&mut signals, async { drop(hand_over_before_stop.await) }) => Ok(Ending::Ended(code)),
        _ = keep => unreachable!("a node is kept registered for as long as its server runs"),
    }
}

/// What asks about each of the node's groups.
fn askers(config: &JoinConfig, own_addresses: &OwnAddresses, report: &Report) -> anyhow::Result<Vec<Asker>> {
    let asker = |at: &BrokerAt| -> anyhow::Result<Asker> {
        let broker = Arc::new(Broker::new(at)?);
        let pace = config.poll_interval..=2 * config.poll_interval;
        Ok(Asker {
            kind: config.kind,
            own_addresses: own_addresses.clone(),
            watch: tokio::sync::Mutex::new(RosterWatch::new(Arc::clone(&broker), pace)),
            broker,
            group: at.group.clone(),
            named: config.named.clone(),
            servers: config.nodes.connections(report),
            command_timeout: config.command_timeout,
        })
    };
    config.brokers.iter().map(asker).collect()
}

/// Waits until it is clear how the node starts in each of its groups, or until a signal ends `join`.
async fn until_all_clear(
    config: &JoinConfig,
    askers: &[Asker],
    signals: &mut Signals,
    health: &Health,
    report: &Report,
) -> Result<Vec<InGroup>, Failure> {
    let a_group_is_clear = Cell::new(false);
    let clear = try_join_all(
        askers.iter().map(|asker| until_clear(config, asker, &a_group_is_clear, health, report)),
    );
    let mut starts = tokio::select! {
        clear = clear => clear?,
        signal = signals.next_to_end() => {
            let number = u8::try_from(signal.as_raw()).unwrap_or_default();
            return Err(Failure::Stopped(128 + number));
        }
    };
    for InGroup { start, .. } in &mut starts {
        leave_out_scripts(start, report);
    }
    Ok(starts)
}

/// Describes how the node is about to start, once for each group.
fn describe_starts(starts: &[InGroup], settings: &ServerSettings) -> String {
    let one = |InGroup { start, group }: &InGroup| match group {
        Some(group) if starts.len() > 1 => format!("{group}: {}", describe_start(start, settings)),
        _ => describe_start(start, settings),
    };
    starts.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// This Redis server before its start.
fn this_redis(config: &JoinConfig, settings: &ServerSettings) -> ThisRedis {
    let journal = Journal::of(settings);
    ThisRedis {
        disk: disk(settings),
        position: position_on_disk(settings),
        noted: journal.noted(),
        is_rolled_back: journal.is_rolled_back(),
        discard_data: config.discard_data,
        is_cache: config.is_cache,
        is_held: false,
    }
}

/// The state of the Redis server just before it starts.
fn started_redis(config: &JoinConfig, settings: &ServerSettings) -> StartedRedis {
    let journal = Journal::of(settings);
    StartedRedis {
        this: this_redis(config, settings),
        last: journal.parts().map(|parts| parts.last),
        journal,
        priority: settings.number("replica-priority").unwrap_or(DEFAULT_PRIORITY),
    }
}

/// A Sentinel takes over the options of its peers, except scripts that it can't run.
fn leave_out_scripts(start: &mut Start, report: &Report) {
    let Start::Monitor { options, .. } = start else { return };
    options.retain(|(name, value)| {
        let is_usable = is_usable_here(name, value);
        if !is_usable {
            report.warning(format_args!(
                "left out `{name} {value}`, an option of the other Sentinels: the script can't be run on \
                 this machine"
            ));
        }
        is_usable
    });
}

/// Warns of replicas that do not answer. If such a replica comes back, it synchronises from this master and
/// loses its own data.
fn warn_of_unheard(heard: &Heard, report: &Report) {
    let unheard = unheard(heard);
    if !unheard.is_empty() {
        report.warning(format_args!(
            "{} can't be reached: this node becomes the master, and writes that exist only on the \
             unreachable servers are lost",
            List(&unheard)
        ));
    }
}

/// Asks until the answers show how to start in a group. Once another group is clear, the wait is short: a
/// Sentinel that monitors nothing in this group goes on asking while it runs.
async fn until_clear(
    config: &JoinConfig,
    asker: &Asker,
    a_group_is_clear: &Cell<bool>,
    health: &Health,
    report: &Report,
) -> Result<InGroup, Failure> {
    let started = Instant::now();
    let expected = config.expected();
    let (mut reported, mut since) = (None, started);
    loop {
        // The settings are read each time, because a person may add files during the wait.
        let settings = config.command.settings().map_err(Failure::Other)?;
        let monitors = |group: &Group| settings.monitors(group.as_str());
        // This Sentinel needs no answer: after a restart, it monitors the same masters as before.
        if config.kind == Kind::Sentinel && asker.group.as_ref().is_some_and(monitors) {
            a_group_is_clear.set(true);
            return Ok(InGroup { start: Start::AsItIs, group: asker.group.clone() });
        }
        let (heard, group) = asker.ask(&BTreeSet::new()).await;
        let this = match config.kind {
            Kind::Redis => This::Redis(this_redis(config, &settings)),
            Kind::Sentinel => This::Sentinel {
                // Only the broker knows the name of its default group. If the broker is down, any group in
                // the file is better than waiting.
                monitors: match &group {
                    Some(group) => monitors(group),
                    None => !settings.monitored().is_empty(),
                },
            },
        };
        let mut start = how_to_start(&heard, this.clone(), expected);
        let is_cluster = settings.is_yes("cluster-enabled");
        // A cluster node can't start as a replica. A server whose own file makes it a replica takes no writes
        // anyway.
        if start == Start::Held && (is_cluster || settings.follows()) {
            start = Start::Alone;
        }
        if start == Start::Lead {
            warn_of_unheard(&heard, report);
        }
        let Start::Wait(waiting) = start else {
            a_group_is_clear.set(true);
            return Ok(InGroup { start, group });
        };
        if config.dry_run {
            return Ok(InGroup { start: Start::Wait(waiting), group });
        }
        if a_group_is_clear.get() && started.elapsed() >= OTHER_GROUP_WITHIN {
            return Ok(InGroup { start: Start::Alone, group });
        }
        let out_of_patience = config.patience.filter(|patience| started.elapsed() >= *patience);
        if let Some(after) = out_of_patience {
            let (waiting_for, hint) = (waiting.to_string(), waiting.hint());
            return Err(Failure::OutOfPatience { after, waiting_for, hint });
        }
        if let This::Redis(this) = &this
            && !is_cluster
            && can_be_held_meanwhile(&waiting, &heard, this)
        {
            if since.elapsed() >= HELD_AFTER {
                return Ok(InGroup { start: Start::Held, group });
            }
        } else {
            since = Instant::now();
        }
        if reported.as_ref() != Some(&waiting) {
            systemd::send_status(&format!("waiting: {waiting}"));
            health.waits(&waiting.to_string());
            report.event(format_args!("waiting: {waiting}\nhint: {}", waiting.hint()));
            reported = Some(waiting);
        }
        let pause = jittered(config.poll_interval);
        let left = config.patience.map(|patience| patience.saturating_sub(started.elapsed()));
        asker.pause(left.map_or(pause, |left| pause.min(left))).await;
    }
}
