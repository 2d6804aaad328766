//! `verify`: checks once that the system is verified. With `--failover` a drill: a failover is made, and measured by a
//! client that writes all the while.

use std::sync::Mutex;
use std::time::Duration;

use broker_fn::api::Group;
use redis::Value;
use tokio::time::{Instant, sleep};

use super::look::Watcher;
use super::stop::Stop;
use crate::cli::VerifyArgs;
use crate::config::LookConfig;
use crate::error::Failure;
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::reply::text;
use crate::report::Report;
use crate::report::document::{Ending, FailoverJson, ms};
use crate::report::event::Event;
use crate::report::table::table;
use crate::system::decide::{Refusal, RefusalKind};
use crate::system::judge::Unmet;
use crate::system::members::System;
use crate::system::servers::Servers;
use crate::system::timings::Phase;
use crate::words::took;

/// The key that is written. It is the drill's own.
const KEY: &str = "sentinel-runner:drill";

/// How long it stays where the drill could not delete it, in seconds.
const KEY_LIFE: u32 = 60;

/// How long the client waits between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(1);

/// How often a Sentinel that is not ready to fail over is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// How often the system is looked at while the roles move.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// `verify`.
///
/// # Errors
///
/// Where the system is not verified, with what keeps it from being; where the drill is refused or does not come to its end.
pub async fn verify(typed: VerifyArgs, report: &Report) -> Result<Ending, Failure> {
    let VerifyArgs { look, failover, timeout } = typed;
    let config = LookConfig::resolve(look, &[("--timeout", timeout)])?;
    let watcher = Watcher::new(&config, report)?;
    let started = Instant::now();
    let mut stop = Stop::new()?;
    stop.or(async {
        let system = watcher.look().await?.verdict?;
        if !failover {
            verified(report, &system, started.elapsed());
            return Ok(Ending::Verified);
        }
        if system.replicas.is_empty() {
            return Err(Failure::Refused(Refusal {
                kind: RefusalKind::Unsafe,
                reason: format!("{} has no replica to fail over to", system.master.endpoint),
                hint: "let a second Redis server register, and run `sentinel-runner bootstrap --redis 2`"
                    .into(),
            }));
        }
        report.tell(&Event::Deadline(timeout));
        let (system, failover) = drill(&watcher, report, &system, timeout).await?;
        verified(report, &system, Duration::from_secs_f64(failover.verified_ms / 1000.0));
        Ok(Ending::FailedOver(failover))
    })
    .await
}

fn verified(report: &Report, system: &System, took: Duration) {
    report.tell(&Event::Verified { system, took, how: "verified" });
    report.result(table(system, report.result_style()));
}

/// Makes the failover. Returns the system after it, and what it took.
async fn drill(
    watcher: &Watcher<'_>,
    report: &Report,
    before: &System,
    timeout: Duration,
) -> Result<(System, FailoverJson), Failure> {
    let deadline = Instant::now() + timeout;
    let client = Client::new(watcher.servers(), before);
    let roles_move = async {
        client.has_written(deadline).await?;
        // Not the Sentinel that the client asks first: others learn of it from this one.
        let sentinel = &before.sentinels.last().expect("a verified system has Sentinels").endpoint;
        report.timings().enter(Phase::Prepare);
        ask_for_failover(watcher.servers(), &before.group, sentinel, deadline).await?;
        let asked = Instant::now();
        client.counts_from_here();
        report.event(format_args!("{sentinel} fails over from {}", before.master.endpoint));
        report.timings().enter(Phase::Verify);
        let mut unmet = Vec::new();
        loop {
            match watcher.look().await?.verdict {
                Ok(system)
                    if system.master.endpoint != before.master.endpoint && client.writes_to(&system) =>
                {
                    return Ok((system, asked.elapsed()));
                }
                Err(Failure::NotAsItShouldBe { unmet: found, .. }) => unmet = found,
                Err(failure @ Failure::Refused(_)) => return Err(failure),
                Ok(_) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                if unmet.is_empty() {
                    let what = "is still the master, or the client can't write to the new one".to_owned();
                    unmet.push(Unmet::new(&before.master.endpoint, what));
                }
                return Err(Failure::NotVerified { after: timeout, unmet });
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    let moved = tokio::select! {
        moved = roles_move => moved,
        never = client.write_on() => match never {},
    };
    report.timings().enter(Phase::Finish);
    client.forget().await;
    let (system, verified) = moved?;
    let seen = client.seen();
    report.result(format_args!("failover from {} to {}", before.master.endpoint, system.master.endpoint));
    report.result(format_args!("  a client could not write for  {}", took(seen.longest)));
    report.result(format_args!("  verified again after          {}\n", took(verified)));
    let failover = FailoverJson {
        from: before.master.endpoint.to_string(),
        to: system.master.endpoint.to_string(),
        unwritable_ms: ms(seen.longest),
        verified_ms: ms(verified),
        writes: seen.writes,
    };
    Ok((system, failover))
}

/// Asks until the Sentinel begins. One that has just found its replicas has nobody to promote for about 100 ms, and one
/// that has just failed over waits.
async fn ask_for_failover(
    servers: &Servers,
    group: &Group,
    sentinel: &Endpoint,
    deadline: Instant,
) -> Result<(), Failure> {
    let unusable = |what: String| Failure::Unusable {
        node: sentinel.clone(),
        what,
        hint: "see to that Sentinel, and run this again: nothing was changed".into(),
    };
    let failover = [command!("SENTINEL", "FAILOVER", group)];
    loop {
        let replies = servers.sentinels.send(sentinel, &failover).await;
        match replies.map(|mut replies| replies.remove(0)) {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error))
                if matches!(error.code.as_str(), "NOGOODSLAVE" | "INPROG") && Instant::now() < deadline =>
            {
                sleep(ASK_AGAIN).await;
            }
            Ok(Err(error)) => {
                return Err(unusable(format!("`SENTINEL FAILOVER` was answered with `{error}`")));
            }
            Err(error) => return Err(unusable(error.to_string())),
        }
    }
}

/// A client as there are many: it asks the Sentinels who is master, writes there, and asks again where that fails.
struct Client<'a> {
    servers: &'a Servers,
    group: &'a Group,
    sentinels: Vec<&'a Endpoint>,
    first_master: &'a Endpoint,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    /// Writes that were answered with `OK`.
    writes: u64,
    /// The last of them.
    last: Instant,
    /// The longest time between two of them.
    longest: Duration,
    /// Where it writes, as a Sentinel has said.
    master: Option<Endpoint>,
    /// Where it has written last.
    wrote_to: Option<Endpoint>,
    /// Why it could not write, the last time.
    error: String,
}

/// What never comes.
enum Never {}

impl<'a> Client<'a> {
    fn new(servers: &'a Servers, system: &'a System) -> Self {
        let seen = Seen {
            writes: 0,
            last: Instant::now(),
            longest: Duration::ZERO,
            master: None,
            wrote_to: None,
            error: "it has yet to write".to_owned(),
        };
        let sentinels = system.sentinels.iter().map(|sentinel| &sentinel.endpoint).collect();
        let (group, first_master) = (&system.group, &system.master.endpoint);
        Self { servers, group, sentinels, first_master, seen: Mutex::new(seen) }
    }

    fn seen(&self) -> Seen {
        self.with(|seen| seen.clone())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.seen.lock().expect("no holder panics"))
    }

    /// Writes on and on.
    async fn write_on(&self) -> Never {
        loop {
            let written = self.write().await;
            self.with(|seen| match written {
                Ok(()) => {
                    seen.writes += 1;
                    seen.longest = seen.longest.max(seen.last.elapsed());
                    seen.last = Instant::now();
                    seen.wrote_to = seen.master.clone();
                }
                Err(error) => {
                    seen.master = None;
                    seen.error = error;
                }
            });
            sleep(WRITE_INTERVAL).await;
        }
    }

    async fn write(&self) -> Result<(), String> {
        let known = self.with(|seen| seen.master.clone());
        let master = match known {
            Some(master) => master,
            None => {
                let master = self.ask().await?;
                self.with(|seen| seen.master = Some(master.clone()));
                master
            }
        };
        let number = self.with(|seen| seen.writes);
        let set = [command!("SET", KEY, number, "EX", KEY_LIFE)];
        let mut replies =
            self.servers.redis.send(&master, &set).await.map_err(|error| format!("{master}: {error}"))?;
        replies.remove(0).map(drop).map_err(|error| format!("{master}: {error}"))
    }

    async fn ask(&self) -> Result<Endpoint, String> {
        let question = [command!("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.group)];
        let mut error = String::new();
        for sentinel in &self.sentinels {
            match self.servers.sentinels.send(sentinel, &question).await.map(|mut replies| replies.remove(0))
            {
                Ok(Ok(Value::Array(words))) if words.len() == 2 => {
                    return Ok(Endpoint::new(text(&words[0]), text(&words[1]).parse().unwrap_or_default()));
                }
                Ok(Ok(_)) => error = format!("{sentinel}: it names no master"),
                Ok(Err(refused)) => error = format!("{sentinel}: {refused}"),
                Err(lost) => error = format!("{sentinel}: {lost}"),
            }
        }
        Err(error)
    }

    /// Waits for the first write: without it there is nothing to measure, and nothing was changed yet.
    async fn has_written(&self, deadline: Instant) -> Result<(), Failure> {
        // A right that is missing does not come by waiting.
        let deadline = deadline.min(Instant::now() + Duration::from_secs(5));
        while self.seen().writes == 0 {
            if Instant::now() >= deadline {
                return Err(Failure::Unusable {
                    node: self.first_master.clone(),
                    what: format!("a client can't write to it: {}", self.seen().error),
                    hint: format!(
                        "the drill has to be able to reach the master that the Sentinels name, and to SET and DEL \
                         the key `{KEY}`; nothing was changed"
                    ),
                });
            }
            sleep(WRITE_INTERVAL).await;
        }
        Ok(())
    }

    /// What was before does not count.
    fn counts_from_here(&self) {
        self.with(|seen| seen.longest = Duration::ZERO);
    }

    /// Whether it has written to the master of that system.
    fn writes_to(&self, system: &System) -> bool {
        self.seen().wrote_to.is_some_and(|master| system.master.is_at(&master))
    }

    /// Deletes what it has written. Where that is not possible, it goes by itself.
    async fn forget(&self) {
        if let Some(master) = self.seen().wrote_to {
            let _ = self.servers.redis.send(&master, &[command!("DEL", KEY)]).await;
        }
    }
}
