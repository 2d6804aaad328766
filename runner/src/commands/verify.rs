//! `verify`: checks once that the system is verified. With `--failover` it runs a drill: it changes the
//! master as `failover` does, and a client that keeps writing measures the effect.

use std::sync::Mutex;
use std::time::Duration;

use broker_fn::api::{Group, Roster};
use redis::Value;
use tokio::time::{Instant, sleep};

use super::failover::{ChangedMaster, MasterChange, document};
use super::look::Watcher;
use super::stop::Stop;
use crate::cli::VerifyArgs;
use crate::config::LookConfig;
use crate::error::Failure;
use crate::node::command::{Command, command};
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::reply::text;
use crate::node::sentinel::named_address;
use crate::report::Report;
use crate::report::document::{Ending, FailoverJson, ms};
use crate::report::event::Event;
use crate::report::table::table;
use crate::system::members::System;
use crate::system::servers::Servers;
use crate::system::timings::Phase;
use crate::words::took;

/// The key that the drill writes. Only the drill uses it.
const KEY: &str = "sentinel-runner:drill";

/// How long the key stays if the drill can't delete it, in seconds.
const KEY_LIFE: u32 = 60;

/// How long the client waits between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(1);

/// `verify`.
///
/// # Errors
///
/// If the system is not verified, with the reasons; if the drill is refused, or does not complete.
pub async fn verify(typed: VerifyArgs, report: &Report) -> Result<Ending, Failure> {
    let VerifyArgs { look, failover, timeout } = typed;
    let config = LookConfig::resolve(look, &[("--timeout", timeout)])?;
    let watcher = Watcher::new(&config, report)?;
    let started = Instant::now();
    let mut stop = Stop::new()?;
    let look = async { if failover { watcher.settled().await } else { watcher.look().await } };
    let looked = stop.or(look).await?;
    let system = looked.verdict?;
    if !failover {
        verified(report, &system, started.elapsed());
        return Ok(Ending::Verified);
    }
    report.tell(&Event::Deadline(timeout));
    let deadline = started + timeout;
    let change =
        MasterChange { config: &config, watcher: &watcher, report, before: &system, deadline, timeout };
    let (system, failover) = drill(&change, looked.roster, &mut stop).await?;
    verified(report, &system, Duration::from_secs_f64(failover.verified_ms / 1000.0));
    Ok(Ending::FailedOver(failover))
}

fn verified(report: &Report, system: &System, took: Duration) {
    report.tell(&Event::Verified { system, took, how: "verified" });
    report.result(table(system, report.result_style()));
}

/// Changes the master while a client writes. Returns the system after the change, and the measurements.
async fn drill(
    change: &MasterChange<'_>,
    roster: Roster,
    stop: &mut Stop,
) -> Result<(System, FailoverJson), Failure> {
    let MasterChange { report, before, deadline, .. } = *change;
    change.check()?;
    let client = Client::new(change.watcher.servers(), before);
    let roles_move = async {
        stop.or(client.has_written(deadline)).await?;
        client.counts_from_here();
        let changed = change.run(None, roster, stop).await?;
        stop.or(client.writes_to(&changed.system, deadline)).await?;
        Ok(changed)
    };
    let moved = tokio::select! {
        moved = roles_move => moved,
        never = client.write_on() => match never {},
    };
    report.timings().enter(Phase::Finish);
    client.forget().await;
    let changed: ChangedMaster = moved?;
    let after = changed.system;
    let counts = client.counts();
    report.result(format_args!("failover from {} to {}", before.master.endpoint, after.master.endpoint));
    report.result(format_args!("  acknowledged writes lost      {} of {}", counts.lost, counts.writes));
    report.result(format_args!("  a client could not write for  {}", took(counts.longest)));
    report.result(format_args!("  verified again after          {}\n", took(changed.verified)));
    let failover = FailoverJson {
        unwritable_ms: Some(ms(counts.longest)),
        writes: Some(counts.writes),
        lost: Some(counts.lost),
        ..document(before, &after, &changed.handed_over, changed.verified)
    };
    Ok((after, failover))
}

/// A client like many others: it asks the Sentinels for the master, writes there, and asks again if a write
/// fails.
struct Client<'a> {
    /// Separate connections for the client: while writes are paused, a write blocks all commands behind it.
    redis: Connections,
    sentinel_connections: &'a Connections,
    group: &'a Group,
    sentinels: Vec<&'a Endpoint>,
    first_master: &'a Endpoint,
    counts: Mutex<DrillCounts>,
}

#[derive(Debug, Clone)]
struct DrillCounts {
    /// Writes that were answered with `OK`. Each write stores the number of writes before it.
    writes: u64,
    /// The acknowledged writes that the next master did not have.
    lost: u64,
    /// When the last write was acknowledged.
    last: Instant,
    /// The longest time between two acknowledged writes.
    longest: Duration,
    /// The master that the client writes to, as a Sentinel has named it.
    master: Option<Endpoint>,
    /// The server that the client has written to last.
    wrote_to: Option<Endpoint>,
    /// Why the last failed write failed.
    error: String,
}

/// The result of a task that never ends.
enum Never {}

impl<'a> Client<'a> {
    fn new(servers: &'a Servers, system: &'a System) -> Self {
        let counts = DrillCounts {
            writes: 0,
            lost: 0,
            last: Instant::now(),
            longest: Duration::ZERO,
            master: None,
            wrote_to: None,
            error: "it has not written yet".to_owned(),
        };
        let sentinels = system.sentinels.iter().map(|sentinel| &sentinel.endpoint).collect();
        let (group, first_master) = (&system.group, &system.master.endpoint);
        let (redis, sentinel_connections) = (servers.redis.apart(), &servers.sentinels);
        Self { redis, sentinel_connections, group, sentinels, first_master, counts: Mutex::new(counts) }
    }

    fn counts(&self) -> DrillCounts {
        self.with_counts(|counts| counts.clone())
    }

    fn with_counts<T>(&self, change: impl FnOnce(&mut DrillCounts) -> T) -> T {
        change(&mut self.counts.lock().expect("no holder panics"))
    }

    /// Writes again and again.
    async fn write_on(&self) -> Never {
        loop {
            let written = self.write().await;
            self.with_counts(|counts| match written {
                Ok(()) => {
                    counts.writes += 1;
                    counts.longest = counts.longest.max(counts.last.elapsed());
                    counts.last = Instant::now();
                    counts.wrote_to = counts.master.clone();
                }
                Err(error) => {
                    counts.master = None;
                    counts.error = error;
                }
            });
            sleep(WRITE_INTERVAL).await;
        }
    }

    async fn write(&self) -> Result<(), String> {
        let known = self.with_counts(|counts| counts.master.clone());
        let master = match known {
            Some(master) => master,
            None => {
                let master = self.ask().await?;
                self.with_counts(|counts| counts.master = Some(master.clone()));
                master
            }
        };
        if self.with_counts(|counts| counts.wrote_to.as_ref().is_some_and(|before| *before != master)) {
            self.count_lost(&master).await?;
        }
        let number = self.with_counts(|counts| counts.writes);
        self.send(&master, command!("SET", KEY, number, "EX", KEY_LIFE)).await.map(drop)
    }

    /// The value on the new master shows the last write that has reached it.
    async fn count_lost(&self, master: &Endpoint) -> Result<(), String> {
        let found = self.send(master, command!("GET", KEY)).await?;
        let found = text(&found).parse::<u64>().map_or(0, |number| number + 1);
        self.with_counts(|counts| {
            counts.lost += counts.writes.saturating_sub(found);
            counts.wrote_to = Some(master.clone());
        });
        Ok(())
    }

    async fn send(&self, master: &Endpoint, command: Command) -> Result<Value, String> {
        let replies =
            self.redis.send(master, &[command]).await.map_err(|error| format!("{master}: {error}"))?;
        let reply = replies.into_iter().next().expect("one reply for each command");
        reply.map_err(|error| format!("{master}: {error}"))
    }

    async fn ask(&self) -> Result<Endpoint, String> {
        let question = [command!("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.group)];
        let mut error = String::new();
        for sentinel in &self.sentinels {
            let replies = self.sentinel_connections.send(sentinel, &question).await;
            match replies.map(|mut replies| replies.remove(0)) {
                Ok(Ok(reply)) => match named_address(&reply) {
                    Some(master) => return Ok(master),
                    None => error = format!("{sentinel}: reports no master"),
                },
                Ok(Err(refused)) => error = format!("{sentinel}: {refused}"),
                Err(lost) => error = format!("{sentinel}: {lost}"),
            }
        }
        Err(error)
    }

    /// Waits for the first write. Without a first write, the client can't measure the gap. No role has been
    /// changed at this point.
    async fn has_written(&self, deadline: Instant) -> Result<(), Failure> {
        // If a right is missing, waiting does not help.
        let deadline = deadline.min(Instant::now() + Duration::from_secs(5));
        while self.counts().writes == 0 {
            if Instant::now() >= deadline {
                return Err(Failure::Unusable {
                    node: self.first_master.clone(),
                    what: format!("a client can't write to it: {}", self.counts().error),
                    hint: format!(
                        "let the runner reach the master that the Sentinels report, and grant its user \
                         SET, GET and DEL on the key `{KEY}`; nothing was changed"
                    ),
                });
            }
            sleep(WRITE_INTERVAL).await;
        }
        Ok(())
    }

    /// Starts the measurement of the longest time.
    fn counts_from_here(&self) {
        self.with_counts(|counts| counts.longest = Duration::ZERO);
    }

    /// Waits until the client has written to the master of this system.
    async fn writes_to(&self, system: &System, deadline: Instant) -> Result<(), Failure> {
        while !self.counts().wrote_to.is_some_and(|master| system.master.is_at(&master)) {
            if Instant::now() >= deadline {
                return Err(Failure::Unusable {
                    node: system.master.endpoint.clone(),
                    what: format!("a client can't write to it: {}", self.counts().error),
                    hint: "this is the new master; run `sentinel-runner status`".into(),
                });
            }
            sleep(WRITE_INTERVAL).await;
        }
        Ok(())
    }

    /// Deletes the key. If that fails, the key expires.
    async fn forget(&self) {
        if let Some(master) = self.counts().wrote_to {
            let _ = self.redis.send(&master, &[command!("DEL", KEY)]).await;
        }
    }
}
