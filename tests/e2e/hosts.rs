//! Real hosts: `deploy/compose.yaml` as it ships, in containers, and what happens to those.
//!
//! `make test-hosts` tries it. Not every machine can run containers; then it says so.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{Containers, Engine, Lab, scenario_within};

use crate::support::{LIMIT, tried, whole_sweep};

const POLL: Duration = Duration::from_millis(50);

/// How long all of it may take.
const ALL: Duration = Duration::from_secs(900);

/// How long the system may take to be verified after one container was hurt: it fails over after five seconds, and a Sentinel looks at a
/// replica every ten.
const ONE: Duration = Duration::from_secs(20);

/// The same after all of them, or where the broker has forgotten everybody, who register again every 75 s at the latest.
const MANY: Duration = Duration::from_secs(100);

const REDIS: [&str; 3] = ["redis-1", "redis-2", "redis-3"];
const SENTINELS: [&str; 3] = ["sentinel-1", "sentinel-2", "sentinel-3"];

/// So many keys are written before each of the things that happen.
const KEYS: usize = 50;

/// A system of containers.
struct Site {
    containers: Containers,
    /// How many keys were confirmed by a replica so far.
    keys: usize,
}

impl Site {
    /// Starts the file, until its runner is done.
    async fn new(lab: &Lab, engine: Engine, file: &str) -> Result<Self> {
        let site = Self { containers: Containers::start(lab, engine, file).await?, keys: 0 };
        site.verified(MANY, "up").await?;
        // Others depend on nothing of it, and it would come back with them.
        site.containers.remove("runner", false).await?;
        Ok(site)
    }

    /// Waits until the system is verified, and has every key.
    async fn verified(&self, limit: Duration, what: &str) -> Result<()> {
        let started = Instant::now();
        let broker = format!("http://{}:3000", self.containers.addr("broker").await?);
        let took = loop {
            let (is_verified, said) = self.containers.runner(&["verify", "--broker", &broker]).await?;
            if is_verified {
                break started.elapsed();
            }
            if started.elapsed() > limit {
                self.show_logs().await?;
                anyhow::bail!("after {what} it is not verified within {limit:?}:\n{said}");
            }
            tokio::time::sleep(POLL).await;
        };
        let named = self.master().await?;
        let keys = (0..self.keys).map(|number| format!("key:{number}"));
        let ask: Vec<String> = ["EXISTS".to_owned()].into_iter().chain(keys).collect();
        let kept: usize = if self.keys == 0 { 0 } else { self.containers.command(named, 6379, &ask).await? };
        tried(format_args!(
            "hosts tried: {what}: verified after {:.1} s, {kept} of {} keys",
            took.as_secs_f64(),
            self.keys
        ));
        if kept != self.keys {
            self.show_logs().await?;
        }
        ensure!(kept == self.keys, "after {what} {kept} of {} keys are left", self.keys);
        Ok(())
    }

    async fn show_logs(&self) -> Result<()> {
        for service in REDIS.iter().chain(&SENTINELS) {
            eprintln!("==== {service} ====\n{}", self.containers.log(service).await?);
        }
        Ok(())
    }

    /// Whom the Sentinels name that can be asked.
    async fn named(&self) -> Result<&'static str> {
        let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"];
        for sentinel in SENTINELS {
            let Ok((host, _)) = self.containers.command::<(String, u16)>(sentinel, 26379, &ask).await else {
                continue;
            };
            for redis in REDIS {
                if host == redis
                    || self.containers.addr(redis).await.is_ok_and(|addr| addr.to_string() == host)
                {
                    return Ok(redis);
                }
            }
        }
        anyhow::bail!("no Sentinel names a master that is one of the services")
    }

    async fn master(&self) -> Result<&'static str> {
        let named = self.named().await?;
        let role: Vec<redis::Value> = self.containers.command(named, 6379, &["ROLE"]).await?;
        ensure!(role.first() == Some(&redis::Value::BulkString(b"master".to_vec())), "{named}: {role:?}");
        Ok(named)
    }

    /// Writes to the master, until a replica has it.
    async fn write(&mut self) -> Result<()> {
        let addr = self.containers.addr(self.master().await?).await?;
        let client = redis::Client::open(format!("redis://{addr}:6379"))?;
        let settings = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(LIMIT))
            .set_response_timeout(Some(LIMIT));
        let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
        for _ in 0..KEYS {
            let set = redis::cmd("SET").arg(format!("key:{}", self.keys)).arg(1).to_owned();
            let _: String = set.query_async(&mut connection).await?;
            self.keys += 1;
        }
        // For longer than a replica takes that has just come back.
        let wait = redis::cmd("WAIT").arg(1).arg(10_000).to_owned();
        let confirmed: usize = wait.query_async(&mut connection).await?;
        ensure!(confirmed > 0, "no replica confirms the writes");
        Ok(())
    }

    /// Until the Sentinels name another master than this.
    async fn until_replaced(&self, master: &str) -> Result<()> {
        let started = Instant::now();
        // The address of one without a network can't be told; another's can.
        while self.named().await.ok().is_none_or(|named| named == master) {
            ensure!(started.elapsed() < LIMIT, "{master} is not replaced");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn stop(&self, service: &str) -> Result<()> {
        self.containers.compose(&["stop", service]).await.map(drop)
    }

    async fn start(&self, service: &str) -> Result<()> {
        self.containers.podman(&["start"], service).await.map(drop)
    }

    async fn kill(&self, service: &str) -> Result<()> {
        self.containers.podman(&["kill"], service).await.map(drop)
    }
}

fn nodes() -> impl Iterator<Item = &'static str> {
    REDIS.into_iter().chain(SENTINELS)
}

/// `None` where there can be no containers.
async fn engine() -> Option<Engine> {
    match Engine::new(Path::new(env!("CARGO_BIN_EXE_local-host"))).await {
        Ok(engine) => Some(engine),
        Err(error) => {
            let error = format!("{error:#}");
            let last = error.trim().lines().last().unwrap_or_default();
            tried(format_args!("not tried here: containers: {last}"));
            None
        }
    }
}

#[test]
fn containers_that_stop_die_and_come_back_are_one_system_again() {
    if !whole_sweep() {
        tried("not tried here: containers (make test-hosts)");
        return;
    }
    scenario_within(ALL, async |lab| {
        let Some(engine) = engine().await else { return Ok(()) };
        let mut site = Site::new(lab, engine, "compose.yaml").await?;
        site.write().await?;
        let master = site.master().await?;
        site.stop(master).await?;
        let log = site.containers.log(master).await?;
        ensure!(log.contains("handed over to"), "{log}");
        site.start(master).await?;
        site.verified(ONE, "the master stopped (a handover) and started").await?;
        site.suffers_everything().await
    });
}

impl Site {
    async fn suffers_everything(&mut self) -> Result<()> {
        for service in nodes().chain(["broker"]) {
            self.write().await?;
            self.kill(service).await?;
            self.start(service).await?;
            self.verified(ONE, &format!("{service} killed and started")).await?;
        }
        for with_volume in [false, true] {
            let how = if with_volume { "made anew without its volume" } else { "made anew with its volume" };
            for master in [true, false] {
                self.write().await?;
                let named = self.master().await?;
                let service = if master { named } else { REDIS[usize::from(named == REDIS[0])] };
                let role = if master { "the master" } else { "a replica" };
                self.containers.remove(service, with_volume).await?;
                self.containers.create(service).await?;
                self.verified(MANY, &format!("{role} {how}")).await?;
            }
            self.write().await?;
            self.containers.remove("sentinel-2", with_volume).await?;
            self.containers.create("sentinel-2").await?;
            self.verified(MANY, &format!("a Sentinel {how}")).await?;
        }
        for kills in [false, true] {
            self.write().await?;
            let all: Vec<&str> = nodes().collect();
            if kills {
                for service in &all {
                    self.kill(service).await?;
                }
            } else {
                self.containers.compose(&[&["stop"], &all[..]].concat()).await?;
            }
            for service in &all {
                self.start(service).await?;
            }
            let how = if kills { "killed" } else { "stopped" };
            self.verified(MANY, &format!("all nodes {how} and started")).await?;
        }
        self.write().await?;
        let master = self.master().await?;
        let addr = self.containers.addr(master).await?;
        self.containers.disconnect(master).await?;
        self.until_replaced(master).await?;
        self.containers.connect(master, addr).await?;
        self.verified(MANY, "the master without a network until it was replaced").await?;
        self.write().await?;
        self.containers.remove("broker", true).await?;
        self.containers.create("broker").await?;
        self.verified(MANY, "the broker made anew without its store").await
    }
}
