//! A store that spans regions: a write in one region arrives in the other region later, each key separately.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use broker_fn::api::{Group, Kind, Roster};
use e2e::{Broker, Lab, Regions, Reply, System, at_once, eventually, scenario};
use futures::future::{try_join, try_join_all, try_join3};
use serde_json::json;

use crate::held::{comes_back_and_empties_nobody, expect_all_keys, filled, with_store};
use crate::join::{FAST, joining, until_healthy};
use crate::support::{LIMIT, Random, expect_code, roster, run};

/// How many groups change at once, and how often each does.
const GROUPS: usize = 10;
const CHANGES: usize = 10;

/// How long a key takes to arrive, in milliseconds.
const LAG: (usize, usize) = (10, 1000);

/// How long a change may take to show after its last key has arrived.
const SHOWS_WITHIN: Duration = Duration::from_secs(2);

/// How long it takes until snapshots of a change are stored and have reached the other region: 5 s, and a
/// lag.
const SETTLES_WITHIN: Duration = Duration::from_secs(7);

/// How long a test waits for a change to show. Its keys need a [`LAG`] for that.
const SHOWN_AT_LAST: Duration = Duration::from_secs(40);

/// The interval between two requests to a broker.
const POLL: Duration = Duration::from_millis(50);

/// Two brokers, each with the store of its region.
struct TwoRegions {
    regions: Regions,
    brokers: [Broker; 2],
}

impl TwoRegions {
    async fn start(lab: &Lab, lag: impl Fn(&str) -> Duration + Send + Sync + 'static) -> Result<Self> {
        let regions = Regions::start(lab, lag).await?;
        let broker = |region| lab.broker(Broker::builder().store(regions.store(region)));
        let brokers = [broker(0)?, broker(1)?];
        Ok(Self { regions, brokers })
    }

    /// The addresses of a group's servers, as a region's broker lists them.
    async fn redis(&self, region: usize, group: &Group) -> Result<Vec<String>> {
        let reply = self.brokers[region].get(format!("/groups/{group}")).send().await?;
        servers(&reply)
    }

    /// The key of each group's revision. To find the keys, this registers a Sentinel in each group.
    async fn revisions_of(&self, groups: &[Group]) -> Result<Vec<String>> {
        let mut revisions = vec![];
        for group in groups {
            let before = self.regions.writes().len();
            let reply = self.brokers[0].post(format!("/groups/{group}/sentinel")).send().await?;
            ensure!(reply.status.is_success(), "{reply}");
            let revision = eventually(LIMIT, async || {
                let writes = self.regions.writes();
                let revision = writes[before..].iter().find(|write| write.key.starts_with("rev:"));
                let written = || format!("no revision of {group} is written, only {:?}", &writes[before..]);
                Ok(revision.with_context(written)?.key.clone())
            });
            revisions.push(revision.await?);
        }
        self.regions.until_even().await;
        Ok(revisions)
    }

    /// Waits until a region's roster shows a server, or no longer shows it, and returns when that was. With
    /// `waits`, requests wait as the runner's do.
    async fn until_shown(
        &self,
        region: usize,
        group: &Group,
        change: &GroupChange,
        waits: bool,
    ) -> Result<Instant> {
        let mut known = String::new();
        eventually(SHOWN_AT_LAST, async || {
            let path = format!("/groups/{group}{}", if known.is_empty() { "" } else { "?wait=20s" });
            let reply = at_once(self.brokers[region].get(path).header("if-none-match", &known).send().await);
            if reply.status != 304 && change.is_in(&at_once(servers(&reply))) {
                return Ok(Instant::now());
            }
            if waits {
                known = reply.header("etag").context("a roster has a tag")?.to_owned();
            } else {
                // Ten groups ask at once, and must not keep the brokers busy.
                tokio::time::sleep(POLL).await;
            }
            bail!("{change:?} of {group} does not show in region {region}: {reply}")
        })
        .await
    }

    /// Makes a change in a region, which must not hide it again. Waits until the other region shows it, and
    /// returns when that was.
    async fn change(
        &self,
        region: usize,
        group: &Group,
        change: &GroupChange,
        waits: bool,
    ) -> Result<Instant> {
        change.make(&self.brokers[region], group).await?;
        let done = AtomicBool::new(false);
        let there = async {
            let shown = self.until_shown(1 - region, group, change, waits).await;
            done.store(true, Ordering::Relaxed);
            shown
        };
        let (shown, ()) = try_join(there, self.never_hidden(region, group, change, &done)).await?;
        Ok(shown)
    }

    /// Waits until snapshots are stored and have reached the other region. No region may hide the change
    /// during this time.
    async fn settles(&self, region: usize, group: &Group, change: &GroupChange) -> Result<()> {
        let done = AtomicBool::new(false);
        let settles = async {
            tokio::time::sleep(SETTLES_WITHIN).await;
            done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let here = self.never_hidden(region, group, change, &done);
        let there = async {
            // Until then, another instance may use an older snapshot.
            tokio::time::sleep(SHOWS_WITHIN).await;
            self.never_hidden(1 - region, group, change, &done).await
        };
        try_join3(here, there, settles).await?;
        Ok(())
    }

    /// When the last key of a change has arrived in the other region, of the keys that a region has written
    /// since write number `from`.
    fn last_arrival(&self, from: usize, region: usize, group: &Group, revision: &str) -> Option<Instant> {
        let own = format!("reg:{group}:");
        let writes = self.regions.writes();
        let keys = writes[from..]
            .iter()
            .filter(|write| write.region == region && (write.key.starts_with(&own) || write.key == revision));
        // A key that has not arrived yet was not needed to show the change.
        keys.filter_map(|write| write.arrived).max()
    }

    /// Checks all the time that a change which a region has answered, or has shown for long enough, is not
    /// hidden there again.
    async fn never_hidden(
        &self,
        region: usize,
        group: &Group,
        change: &GroupChange,
        done: &AtomicBool,
    ) -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            let found = self.redis(region, group).await?;
            ensure!(change.is_in(&found), "{change:?} of {group} is hidden in region {region}: {found:?}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// A server registers or is deregistered.
#[derive(Debug)]
struct GroupChange {
    addr: String,
    registers: bool,
}

impl GroupChange {
    /// A group's change with this number. Every third change removes what the change before has added.
    fn new(group_number: usize, number: usize) -> Self {
        let registers = number % 3 != 2;
        let host = if registers { number } else { number - 1 };
        Self { addr: format!("10.0.{group_number}.{host}:6379"), registers }
    }

    async fn make(&self, broker: &Broker, group: &Group) -> Result<()> {
        let host = self.addr.trim_end_matches(":6379");
        let reply = if self.registers {
            broker.post(format!("/groups/{group}/redis")).json(&json!({"host": host})).send().await?
        } else {
            broker.delete(format!("/groups/{group}/redis/{}", self.addr)).send().await?
        };
        ensure!(reply.status.is_success(), "{self:?}: {reply}");
        Ok(())
    }

    fn is_in(&self, found: &[String]) -> bool {
        found.contains(&self.addr) == self.registers
    }
}

fn servers(reply: &Reply) -> Result<Vec<String>> {
    let roster: Roster = reply.json()?;
    Ok(roster.redis.iter().map(|registration| registration.addr.to_string()).collect())
}

#[test]
fn timed_a_change_shows_soon_after_its_last_key_arrives() {
    scenario(async |lab| {
        let random = Mutex::new(Random::new(1));
        let world = TwoRegions::start(lab, move |_| {
            let lags: Vec<_> = (LAG.0..=LAG.1).collect();
            let lag = random.lock().expect("nothing panics while it holds this lock").one_of(&lags);
            Duration::from_millis(lag as u64)
        })
        .await?;
        let groups: Vec<Group> =
            (0..GROUPS).map(|number| Ok(format!("g{number}").parse()?)).collect::<Result<_>>()?;
        let revisions = world.revisions_of(&groups).await?;
        let groups = groups.iter().zip(&revisions).enumerate().map(async |(number, (group, revision))| {
            let mut latest = Duration::ZERO;
            for change_number in 0..CHANGES {
                let change = GroupChange::new(number, change_number);
                // Some changes are answered in the other region.
                let region = usize::from(change_number % 4 == 3);
                let before = world.regions.writes().len();
                let shown = world.change(region, group, &change, number % 2 == 1).await?;
                if change_number % 5 == 4 {
                    world.settles(region, group, &change).await?;
                }
                let arrived = world.last_arrival(before, region, group, revision);
                let took =
                    arrived.map(|arrived| shown.saturating_duration_since(arrived)).unwrap_or_default();
                ensure!(
                    took < SHOWS_WITHIN,
                    "{change:?} of {group} showed {took:?} after its last key had arrived"
                );
                latest = latest.max(took);
            }
            anyhow::Ok(latest)
        });
        let latest = try_join_all(groups).await?.into_iter().max().unwrap_or_default();
        println!("{} changes; the latest showed {latest:?} after its last key had arrived", GROUPS * CHANGES);
        world.regions.until_even().await;
        Ok(())
    });
}

#[test]
fn a_master_without_its_disk_is_held_in_an_empty_region() {
    scenario(async |lab| {
        let regions = Regions::start(lab, |_| Duration::from_millis(20)).await?;
        regions.cut(true);
        let cut = Instant::now();
        let broker = lab.broker(Broker::builder().variable("expected_redis", 3).store(regions.store(0)))?;
        let redis = (0..3).map(|_| joining(lab, Kind::Redis, &broker).launch()).collect::<Result<_>>()?;
        let sentinels =
            (0..3).map(|_| joining(lab, Kind::Sentinel, &broker).launch()).collect::<Result<_>>()?;
        let system = System { broker, redis, sentinels };
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let before = until_healthy(&system).await?;
        filled(&system, before).await?;
        // From now on, another region answers.
        let system = with_store(lab, system, regions.store(1))?;
        comes_back_and_empties_nobody(&system, before).await?;
        // After that time, everything has arrived. The rosters show it at the latest after the same time
        // again. A node that starts then learns of the system.
        let lag = cut.elapsed();
        regions.cut(false);
        regions.until_even().await;
        // Any instance of the broker may answer, and each instance has only its own snapshots.
        tokio::time::sleep(lag).await;
        ensure!(
            roster(&system.broker).await?.outcome.is_some(),
            "nothing shows {lag:?} after it has arrived"
        );
        system.redis[before].relaunch()?;
        system.redis[before].until_logged("starting as a replica of").await?;
        system.redis[before].until_ready().await?;
        until_healthy(&system).await?;
        expect_all_keys(&system).await
    });
}
