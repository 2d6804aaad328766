//! Real hosts: `deploy/compose.yaml` as it ships, in containers that stop, die and come back; machines that
//! run systemd, set up as docs/deploy.md describes; and the pods of `deploy/kubernetes`.
//!
//! `make test-hosts` runs these tests. If a machine can't run containers, they print that.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Containers, Engine, Lab, Pods, Reply, Request, Secrets, at_once, eventually, scenario_within};
use http::Method;
use tokio::net::TcpStream;

use crate::support::{LIMIT, tried, whole_sweep};

/// How long one test may take.
const ALL: Duration = Duration::from_secs(900);

/// How long the system may take to be verified after a fault of one container: the Sentinels fail over after
/// five seconds, and a Sentinel looks at a replica every ten.
const ONE: Duration = Duration::from_secs(20);

/// How long it may take after a fault of all containers, or if the broker has lost all registrations: the
/// nodes register again after 75 s at the latest.
const MANY: Duration = Duration::from_secs(100);

/// The services of a file that run a Redis server, and those that run a Sentinel.
#[derive(Clone, Copy)]
struct Services {
    redis: [&'static str; 3],
    sentinels: [&'static str; 3],
}

const COMPOSE: Services = Services {
    redis: ["redis-1", "redis-2", "redis-3"],
    sentinels: ["sentinel-1", "sentinel-2", "sentinel-3"],
};

/// How many keys are written before each fault.
const KEYS: usize = 50;

/// A system of containers.
struct Site {
    containers: Containers,
    services: Services,
    /// How many keys a replica has confirmed so far.
    keys: usize,
}

impl Site {
    /// Starts the containers of a file, and waits until the runner is done.
    async fn new(lab: &Lab, engine: Engine, file: &str) -> Result<Self> {
        let containers = Containers::start(lab, engine, file).await?;
        let site = Self { containers, services: COMPOSE, keys: 0 };
        site.verified(MANY, "up").await?;
        let said = site.containers.log("runner").await?;
        ensure!(
            !said.contains("can't write its configuration file"),
            "join asks for each server's role when it starts:\n{said}"
        );
        // No other service depends on the runner, and it would start again with the others.
        site.containers.remove("runner", false).await?;
        Ok(site)
    }

    /// Waits until the system is verified, and checks that it has every key.
    async fn verified(&self, limit: Duration, what: &str) -> Result<()> {
        let started = Instant::now();
        let broker = format!("http://{}:3000", self.containers.addr("broker").await?);
        let verified = eventually(limit, async || {
            let (is_verified, said) = self.containers.runner(&["verify", "--broker", &broker]).await?;
            ensure!(is_verified, "after {what} it is not verified:\n{said}");
            Ok(())
        });
        if let Err(error) = verified.await {
            self.show_logs().await?;
            return Err(error);
        }
        let took = started.elapsed();
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
        for service in self.services.all() {
            eprintln!("==== {service} ====\n{}", self.containers.log(service).await?);
        }
        Ok(())
    }

    /// The master that the first Sentinel to answer names.
    async fn named(&self) -> Result<&'static str> {
        let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"];
        for sentinel in self.services.sentinels {
            let Ok((host, _)) = self.containers.command::<(String, u16)>(sentinel, 26379, &ask).await else {
                continue;
            };
            for redis in self.services.redis {
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

    /// A Redis server that is not this master.
    fn replica_of(&self, master: &str) -> &'static str {
        self.services.redis[usize::from(master == self.services.redis[0])]
    }

    /// Writes keys to the master, and waits until a replica has them.
    async fn write(&mut self) -> Result<()> {
        let client = redis::Client::open(self.containers.url(self.master().await?, 6379).await?)?;
        let settings = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(LIMIT))
            .set_response_timeout(Some(LIMIT));
        let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
        for _ in 0..KEYS {
            let set = redis::cmd("SET").arg(format!("key:{}", self.keys)).arg(1).to_owned();
            let _: String = set.query_async(&mut connection).await?;
            self.keys += 1;
        }
        // The limit is longer than a replica needs that has just come back.
        let wait = redis::cmd("WAIT").arg(1).arg(10_000).to_owned();
        let confirmed: usize = wait.query_async(&mut connection).await?;
        ensure!(confirmed > 0, "no replica confirms the writes");
        Ok(())
    }

    /// Waits until the Sentinels name a master other than this one.
    async fn until_replaced(&self, master: &str) -> Result<()> {
        // A container without a network has no address, so `named` fails as long as the Sentinels name that
        // container.
        eventually(LIMIT, async || {
            let named = self.named().await?;
            ensure!(named != master, "{master} is not replaced");
            Ok(())
        })
        .await
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

impl Services {
    fn all(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.redis.into_iter().chain(self.sentinels)
    }
}

/// The containers of all tests have the same names.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a long test in containers, if long tests are selected and this machine can run containers.
fn in_containers(what: &str, run: impl AsyncFnOnce(&Lab, Engine) -> Result<()>) {
    if whole_sweep() {
        in_few_containers(run);
    } else {
        tried(format_args!("not tried here: {what} (make test-hosts)"));
    }
}

/// Runs a test in containers, if this machine can run containers.
fn in_few_containers(run: impl AsyncFnOnce(&Lab, Engine) -> Result<()>) {
    let _only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    scenario_within(ALL, async |lab| match engine().await {
        Some(engine) => run(lab, engine).await,
        None => Ok(()),
    });
}

/// `None` if this machine can't run containers.
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
    in_few_containers(async |lab, engine| {
        let mut site = Site::new(lab, engine, "deploy/compose.yaml").await?;
        for service in site.services.all() {
            let is_healthy = async || {
                site.containers.is_healthy(service).await.with_context(|| format!("{service} is not healthy"))
            };
            eventually(LIMIT, is_healthy).await?;
        }
        site.write().await?;
        let master = site.master().await?;
        site.stop(master).await?;
        let log = site.containers.log(master).await?;
        ensure!(log.contains("handed over to"), "{log}");
        site.start(master).await?;
        site.verified(ONE, "the master stopped (a handover) and started").await?;
        if whole_sweep() {
            return site.suffers_everything().await;
        }
        tried(format_args!(
            "not tried here: containers that are killed, created again and cut off (make test-hosts)"
        ));
        Ok(())
    });
}

impl Site {
    async fn suffers_everything(&mut self) -> Result<()> {
        for service in self.services.all().chain(["broker"]) {
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
                let service = if master { named } else { self.replica_of(named) };
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
            let all: Vec<&str> = self.services.all().collect();
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

const MACHINES: [&str; 3] = ["machine-1", "machine-2", "machine-3"];

const SECRETS: Secrets = Secrets { token: "token-of-the-broker", password: "of-the-servers" };

/// Each machine's units.
const UNITS: [&str; 2] = ["sentinel-broker-redis@6379", "sentinel-broker-sentinel@26379"];

/// The server's configuration: the documentation leaves it to the operator.
const REDIS_CONF: &str = "\
cat > /etc/redis/6379.conf <<END
port 6379
bind 0.0.0.0
requirepass $REDIS_PASSWORD
dir /var/lib/redis
appendonly yes
supervised systemd
END
chown redis:redis /etc/redis/6379.conf
# Where a container's limits can't be raised.
if [ \"$(ulimit -Hn)\" -lt 65535 ]; then
    for unit in redis sentinel; do
        mkdir -p /etc/systemd/system/sentinel-broker-$unit@.service.d
        printf '[Service]\\nLimitNOFILE=%s\\n' \"$(ulimit -Hn)\" >/etc/systemd/system/sentinel-broker-$unit@.service.d/limit.conf
    done
    systemctl daemon-reload
fi
";

/// The commands of a section of docs/deploy.md, block by block, with the addresses of these machines.
fn documented(section: &str) -> Vec<String> {
    let page = include_str!("../../docs/deploy.md");
    let section = page.split(&format!("\n### {section}\n")).nth(1).expect("there is such a section");
    let section = section.split("\n##").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let here = |block: &str| block.replace("make build\n", "").replace("10.0.0.2", "10.89.8.2");
    blocks.map(here).collect()
}

impl Site {
    /// Runs these commands on a machine.
    async fn types(&self, machine: &str, commands: &str) -> Result<String> {
        let Secrets { token, password } = SECRETS;
        let script =
            format!("cd /root/sentinel-broker; export TOKEN={token} REDIS_PASSWORD={password}\n{commands}");
        self.containers.shell(machine, &script).await
    }

    /// What systemd shows of a unit: its state, and the last status that the unit itself has sent.
    async fn unit(&self, machine: &str, unit: &str) -> Result<(String, String)> {
        let show = |property| format!("systemctl show --value --property {property} {unit}");
        let state = self.types(machine, &show("ActiveState")).await?;
        let said = self.types(machine, &show("StatusText")).await?;
        Ok((state.trim().to_owned(), said.trim().to_owned()))
    }

    async fn until_unit(&self, machine: &str, unit: &str, state: &str, said: &[&str]) -> Result<()> {
        let waited = eventually(LIMIT, async || {
            let (is, says) = self.unit(machine, unit).await?;
            let is_so = is == state && said.iter().any(|said| says.contains(said));
            ensure!(is_so, "{unit} on {machine} is {is} with the status `{says}`, not {state} and {said:?}");
            Ok(())
        });
        let Err(error) = waited.await else { return Ok(()) };
        Err(error.context(self.types(machine, &format!("journalctl --no-pager -u {unit}")).await?))
    }

    /// Waits until systemd shows each unit in the role that it has.
    async fn units_serve(&self) -> Result<()> {
        for machine in self.services.redis {
            self.until_unit(
                machine,
                UNITS[0],
                "active",
                &["the master, with 2 replicas", "a replica of 10.89.8."],
            )
            .await?;
            self.until_unit(machine, UNITS[1], "active", &["monitors 1 master"]).await?;
        }
        Ok(())
    }

    /// Reboots the master's machine, or all machines one after the other.
    async fn reboots(&mut self, all: bool) -> Result<()> {
        self.write().await?;
        let rebooted = if all { MACHINES.to_vec() } else { vec![self.master().await?] };
        for machine in &rebooted {
            self.containers.podman(&["restart", "--time", "30"], machine).await?;
        }
        let what = if all { "all machines, one after the other," } else { "the master's machine" };
        self.verified(MANY, &format!("systemd: {what} rebooted")).await?;
        self.units_serve().await
    }

    /// Kills all machines, and starts them again.
    async fn loses_power(&mut self) -> Result<()> {
        self.write().await?;
        for machine in MACHINES {
            self.kill(machine).await?;
        }
        for machine in MACHINES {
            self.start(machine).await?;
        }
        self.verified(MANY, "systemd: the power failed on all machines").await?;
        self.units_serve().await
    }

    /// Runs commands on the master's machine, or on a replica's. Then waits until the system is verified and
    /// systemd shows each unit in its role.
    async fn suffers(&mut self, of_master: bool, what: &str, commands: &str) -> Result<()> {
        self.write().await?;
        let master = self.master().await?;
        let machine = if of_master { master } else { self.replica_of(master) };
        self.types(machine, commands).await?;
        self.verified(MANY, what).await?;
        self.units_serve().await
    }
}

/// How many idle connections a client may hold open: about twice the usual limit of open files.
const IDLE: usize = 2000;

#[test]
fn the_brokers_unit_starts_it_again_and_many_connections_do_not_end_it() {
    in_containers("the broker's unit", async |lab, engine| {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let containers = Containers::start(lab, engine, "tests/sites/broker.yaml").await?;
        let [install] =
            documented("The broker as a unit").try_into().map_err(|blocks| anyhow::anyhow!("{blocks:?}"))?;
        let script = format!(
            "install /root/broker/spin /usr/local/bin/; cd /root/broker; export TOKEN=t0ken; {install}"
        );
        containers.shell("broker", &script).await?;
        let broker = SocketAddr::new(containers.addr("broker").await?, 3000);
        let ask = async |method: Method, path: &str| {
            Request::new(broker, method, path).header("authorization", "Bearer t0ken").send().await
        };
        let answers = async |path: &str| -> Result<Reply> {
            let answered = eventually(LIMIT, async || {
                let reply = ask(Method::GET, path).await?;
                ensure!(reply.status == 200, "the broker answers {reply}");
                Ok(reply)
            });
            match answered.await {
                Ok(reply) => Ok(reply),
                Err(error) => {
                    let journal = "journalctl --no-pager -u sentinel-broker";
                    Err(error.context(containers.shell("broker", journal).await?))
                }
            }
        };
        answers("/healthcheck").await?;
        assert_eq!(ask(Method::POST, "/redis").await?.status, 201);

        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
        let mut idle = vec![];
        for _ in 0..IDLE {
            idle.push(TcpStream::connect(broker).await?);
        }
        assert_eq!(ask(Method::POST, "/redis").await?.status, 200);
        let pid = "systemctl show --value --property MainPID sentinel-broker";
        let before = containers.shell("broker", pid).await?;
        let restarts = "systemctl show --value --property NRestarts sentinel-broker";
        assert_eq!(containers.shell("broker", restarts).await?.trim(), "0", "the connections ended it");
        drop(idle);

        containers.shell("broker", &format!("kill -KILL {}", before.trim())).await?;
        let started = Instant::now();
        let list: serde_json::Value = answers("/redis").await?.json()?;
        assert_eq!(list["redis"].as_array().map(Vec::len), Some(1), "it is registered still: {list}");
        tried(format_args!(
            "hosts tried: the broker's unit, killed: back after {:.1} s",
            started.elapsed().as_secs_f64()
        ));
        assert_ne!(containers.shell("broker", pid).await?, before);
        Ok(())
    });
}

#[test]
fn machines_with_systemd_are_set_up_as_documented_and_come_back() {
    in_containers("machines with systemd", async |lab, engine| {
        let containers = Containers::start(lab, engine, "tests/sites/systemd.yaml").await?.with(SECRETS);
        let services = Services { redis: MACHINES, sentinels: MACHINES };
        let mut site = Site { containers, services, keys: 0 };
        let [install, enable, bootstrap] =
            documented("systemd").try_into().map_err(|blocks| anyhow::anyhow!("{blocks:?}"))?;
        for machine in MACHINES {
            site.types(machine, &(install.clone() + REDIS_CONF + &enable)).await?;
        }
        for machine in MACHINES {
            site.until_unit(machine, UNITS[0], "activating", &["held"]).await?;
            site.until_unit(machine, UNITS[1], "active", &["monitors nothing yet"]).await?;
        }
        let said = site.types(MACHINES[0], &bootstrap).await?;
        ensure!(said.contains("verified"), "{said}");
        site.verified(MANY, "systemd: bootstrap").await?;
        site.units_serve().await?;

        let [redis, sentinel] = UNITS;
        site.suffers(false, "systemd: a replica restarted", &format!("systemctl restart {redis}")).await?;
        site.suffers(
            true,
            "systemd: the master restarted (a handover)",
            &format!("systemctl restart {redis}"),
        )
        .await?;
        let master = site.master().await?;
        let stop = format!(
            "systemctl stop {redis}; journalctl --no-pager -u {redis} | grep 'handed over to'; systemctl start {redis}"
        );
        site.suffers(true, "systemd: the master stopped (a handover) and started", &stop).await?;
        ensure!(site.master().await? != master, "{master} did not hand over");
        let crash = |unit: &str| format!("kill -KILL $(systemctl show --value --property MainPID {unit})");
        site.suffers(true, "systemd: the master's join killed", &crash(redis)).await?;
        site.suffers(true, "systemd: a Sentinel's join killed", &crash(sentinel)).await?;
        let server = format!(
            "join=$(systemctl show --value --property MainPID {redis}); kill -KILL $(cat /proc/$join/task/$join/children)"
        );
        site.suffers(true, "systemd: the master's server killed", &server).await?;
        site.reboots(false).await?;
        site.reboots(true).await?;
        site.loses_power().await
    });
}

/// How long a system may take to be verified after its pods have come back: for 15 s, a Sentinel may keep an
/// address that a pod no longer has (`SENTINEL_MIN_LINK_RECONNECT_PERIOD` in Redis 7.0's `sentinel.c`), and
/// then it needs a second to connect to the new address.
const PODS_WITHIN: Duration = Duration::from_secs(18);

const PODS: [&str; 3] = ["redis-0", "redis-1", "redis-2"];
const SENTINEL_PODS: [&str; 3] = ["sentinel-0", "sentinel-1", "sentinel-2"];

/// The pod in front of the Redis servers.
const HAPROXY: &str = "redis-haproxy";

/// A system of pods, and how many keys it has.
struct Cluster {
    pods: Pods,
    keys: usize,
}

impl Cluster {
    /// The pod of the master that the Sentinels name.
    async fn master(&self) -> Result<&'static str> {
        for sentinel in SENTINEL_PODS {
            let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"];
            let Ok((host, _)) = self.pods.command::<(String, u16)>(sentinel, 26379, &ask).await else {
                continue;
            };
            if let Some(pod) = PODS.into_iter().find(|pod| host == format!("{pod}.redis.shop.svc")) {
                return Ok(pod);
            }
            anyhow::bail!("{sentinel} names {host}");
        }
        anyhow::bail!("no Sentinel names a master")
    }

    async fn write(&mut self) -> Result<()> {
        let (master, started) = (self.master().await?, Instant::now());
        // One limit for all of it.
        let left = || LIMIT.saturating_sub(started.elapsed());
        // Writes through the Service of the master, as a client does that knows no Sentinels.
        for _ in 0..KEYS {
            let key = format!("key:{}", self.keys);
            eventually(left(), async || {
                match self.pods.command::<String>(HAPROXY, 6379, &["SET", &key, "1"]).await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        anyhow::bail!("no writes are taken: {error:#}\n{}", self.pods.log(HAPROXY).await?)
                    }
                }
            })
            .await?;
            self.keys += 1;
        }
        eventually(left(), async || {
            let info: String = at_once(self.pods.command(master, 6379, &["INFO", "replication"]).await);
            let online = info.matches(",state=online,").count();
            ensure!(online >= 2, "{master} has only {online} replicas:\n{info}");
            Ok(())
        })
        .await?;
        for pod in PODS {
            eventually(left(), async || {
                let has: usize = at_once(self.pods.command(pod, 6379, &["DBSIZE"]).await);
                ensure!(has >= self.keys, "{pod} has {has} of {} keys", self.keys);
                Ok(())
            })
            .await?;
        }
        for pod in PODS.iter().chain(&SENTINEL_PODS).chain([&HAPROXY]) {
            eventually(left(), async || {
                let is_ready = at_once(self.pods.is_ready(pod).await);
                ensure!(is_ready, "{pod} is not ready:\n{}", self.pods.log(pod).await?);
                Ok(())
            })
            .await?;
        }
        // Reads through the Service of the replicas.
        eventually(left(), async || {
            let info: String = at_once(self.pods.command(HAPROXY, 6380, &["INFO", "replication"]).await);
            let is_replica = info.contains("role:slave");
            ensure!(is_replica, "reads go to no replica:\n{info}\n{}", self.pods.log(HAPROXY).await?);
            Ok(())
        })
        .await
    }

    async fn verified(&self, what: &str) -> Result<()> {
        let started = Instant::now();
        let flags = [
            "verify",
            "--broker=http://sentinel-broker",
            "--token-file=/run/sentinel-broker/runner-token",
            "--redis-password-file=/run/sentinel-broker/redis-password",
        ];
        let verified = eventually(PODS_WITHIN, async || {
            let (is_verified, said) = self.pods.job(Some(&flags)).await?;
            ensure!(is_verified, "after {what} it is not verified:\n{said}");
            Ok(())
        });
        if let Err(error) = verified.await {
            for pod in PODS.iter().chain(&SENTINEL_PODS) {
                eprintln!("==== {pod} ====\n{}", self.pods.log(pod).await?);
            }
            return Err(error);
        }
        let took = started.elapsed();
        let master = self.master().await?;
        let keys: usize = self.pods.command(master, 6379, &["DBSIZE"]).await?;
        tried(format_args!(
            "hosts tried: pods: {what}: verified after {:.1} s, {keys} of {} keys",
            took.as_secs_f64(),
            self.keys
        ));
        ensure!(keys == self.keys, "after {what} {keys} of {} keys are left", self.keys);
        Ok(())
    }

    /// Ends these pods, and starts them again with other addresses.
    async fn comes_back(&mut self, pods: &[&str], kills: bool, what: &str) -> Result<()> {
        self.write().await?;
        for pod in pods {
            self.pods.delete(pod, kills).await?;
        }
        for pod in pods {
            self.pods.start(pod).await?;
        }
        self.verified(&format!(
            "{what} {} and back with another address",
            if kills { "killed" } else { "stopped" }
        ))
        .await
    }
}

#[test]
fn pods_come_back_with_other_addresses_and_are_one_system_again() {
    in_containers("pods of deploy/kubernetes", async |lab, engine| {
        let mut cluster = Cluster { pods: Pods::new(lab, engine, SECRETS).await?, keys: 0 };
        for pod in PODS.iter().chain(&SENTINEL_PODS).chain([&HAPROXY]) {
            cluster.pods.start(pod).await?;
        }
        let (is_done, said) = cluster.pods.job(None).await?;
        ensure!(is_done, "{said}");
        cluster.verified("the Job").await?;
        for kills in [false, true] {
            let master = cluster.master().await?;
            let replica = PODS[usize::from(master == PODS[0])];
            cluster.comes_back(&[replica], kills, "a replica").await?;
            cluster.comes_back(&[cluster.master().await?], kills, "the master").await?;
            cluster.comes_back(&["sentinel-1"], kills, "a Sentinel").await?;
            cluster.comes_back(&SENTINEL_PODS, kills, "all Sentinels").await?;
            cluster.comes_back(&PODS, kills, "all Redis servers").await?;
            let all = [PODS, SENTINEL_PODS].concat();
            cluster.comes_back(&all, kills, "all nodes").await?;
        }
        Ok(())
    });
}
