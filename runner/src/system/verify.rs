//! Verifies the system: asks every node until the system is as planned and is seen to work. [`judge`] defines
//! what that means.
//!
//! [`judge`]: super::judge

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use futures::future::{join, join_all};
use redis::Value;
use tokio::time::{Instant, sleep};

use super::judge::{
    Flow, RedisAnswers, SentinelAnswers, SystemAnswers, Unmet, Unproved, master_is_up, reaches_all_nodes,
    replica_is_up, sentinel_agrees,
};
use super::members::{Member, SentinelMember, System};
use super::servers::Servers;
use super::stream::{Proof, confirm, prove};
use crate::node::clients;
use crate::node::command::{Command, command};
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::redis::Writes;
use crate::node::replication::Replication;
use crate::node::reply::{Reply, fields, text};
use crate::node::rights;
use crate::node::sentinel::{NamedMaster, ask_for_vote, peers};
use crate::node::version::Version;

/// The shortest time between two requests to one node.
const POLL: Duration = Duration::from_millis(3);

/// A system to verify.
#[derive(Debug, Clone, Copy)]
pub struct Verifier<'a> {
    pub servers: &'a Servers,
    pub system: &'a System,
    /// The options that every Sentinel should have.
    pub options: &'a BTreeMap<String, String>,
    /// The settings that every Redis server should have.
    pub redis_settings: &'a BTreeMap<String, String>,
    /// Whether replicas are made to [`confirm`], so that they are up sooner.
    pub helps: bool,
}

impl Verifier<'_> {
    /// Asks until every condition holds on every node, then asks all nodes once more at the same time. Gives
    /// up at `until`. Returns the checks that were impossible because a right is missing.
    ///
    /// # Errors
    ///
    /// What does not hold, per node.
    pub async fn verify(&self, until: Instant) -> Result<Vec<Unproved>, Vec<Unmet>> {
        loop {
            let ((proof, mut unproved), ()) =
                join(self.replicates(until), self.sentinels_settle(until)).await;
            let (flow, failed) = match proof {
                Ok(flow) => (flow, Vec::new()),
                Err(failed) => (None, failed),
            };
            let seen = self.look(flow.as_ref()).await;
            let now = seen.unmet();
            // The result for the stream is older than these answers. So a problem in these answers takes
            // precedence on the same node. Otherwise the stream comes first: if writes are paused, the
            // Sentinels get no answer from the master either.
            let is_new = |failed: &Unmet| now.iter().all(|now| now.node != failed.node);
            let mut unmet: Vec<Unmet> = failed.into_iter().filter(is_new).collect();
            unmet.extend(now);
            if unmet.is_empty() {
                unproved.extend(seen.unproved());
                let (lacks, more) = self.rights_of_others(&seen).await;
                unproved.extend(more);
                unmet = lacks;
            }
            if unmet.is_empty() {
                unproved.sort();
                return Ok(unproved);
            }
            if Instant::now() >= until {
                return Err(unmet);
            }
        }
    }

    /// The interval grows with the number of nodes. Otherwise many nodes on few processors would be busy with
    /// nothing but answering.
    fn poll(&self) -> Duration {
        let nodes = 1 + self.system.replicas.len() + self.system.sentinels.len();
        POLL.max(Duration::from_micros(400) * u32::try_from(nodes).unwrap_or(u32::MAX))
    }

    /// Waits until every link is up, and then until the stream flows.
    async fn replicates(&self, until: Instant) -> (Result<Option<Flow>, Vec<Unmet>>, Vec<Unproved>) {
        let up = Mutex::new(BTreeSet::new());
        let replicas = self.system.replicas.iter().map(async |replica| {
            self.until(until, async || self.is_up(replica).await).await;
            up.lock().expect("no holder panics").insert(&replica.endpoint);
        });
        let master = self.until(until, async || {
            let is_up = self.is_up(&self.system.master).await;
            if self.helps && !is_up {
                let up = up.lock().expect("no holder panics").clone();
                let up = self.system.replicas.iter().filter(|replica| up.contains(&replica.endpoint));
                join_all(up.map(|replica| confirm(self.servers, replica))).await;
            }
            is_up
        });
        join(join_all(replicas), master).await;
        // The missing link is reported separately.
        if join_all(self.system.redis().map(|member| self.is_up(member))).await.contains(&false) {
            return (Ok(None), Vec::new());
        }
        match prove(self.servers, self.system, self.helps, until).await {
            Proof::Flows(flow) => (Ok(Some(flow)), Vec::new()),
            Proof::Unproved(unproved) => (Ok(None), vec![unproved]),
            Proof::Fails(unmet) => (Err(unmet), Vec::new()),
        }
    }

    async fn is_up(&self, member: &Member) -> bool {
        let info = [command!("INFO", "replication")];
        let Ok(replies) = self.servers.redis.send(&member.endpoint, &info).await else { return false };
        let Ok(value) = &replies[0] else { return false };
        let replication = Replication::parse(&Info::parse(&text(value)));
        if member.endpoint == self.system.master.endpoint {
            master_is_up(self.system, replication.as_ref()).is_ok()
        } else {
            replica_is_up(self.system, member, replication.as_ref()).is_ok()
        }
    }

    /// Waits until every Sentinel knows the right number of nodes, and then until it has reached all of them.
    async fn sentinels_settle(&self, until: Instant) {
        join_all(self.system.sentinels.iter().map(async |sentinel| {
            self.until(until, async || self.counts_all(sentinel).await).await;
            self.until(until, async || self.reaches_all(sentinel).await).await;
        }))
        .await;
    }

    async fn counts_all(&self, sentinel: &SentinelMember) -> bool {
        let ask = [command!("SENTINEL", "MASTER", self.system.group)];
        let Ok(replies) = self.servers.sentinels.send(&sentinel.endpoint, &ask).await else { return false };
        let Ok(master) = &replies[0] else { return false };
        let named = NamedMaster::parse(master);
        sentinel_agrees(self.system, sentinel, self.options, &named, |_| Ok(())).is_ok()
    }

    async fn reaches_all(&self, sentinel: &SentinelMember) -> bool {
        let group = &self.system.group;
        let ask = [command!("SENTINEL", "SENTINELS", group), command!("SENTINEL", "REPLICAS", group)];
        match self.servers.sentinels.send(&sentinel.endpoint, &ask).await.as_deref() {
            Ok([Ok(sentinels), Ok(replicas)]) => {
                reaches_all_nodes(self.system, sentinel, &peers(sentinels), &peers(replicas)).is_ok()
            }
            _ => false,
        }
    }

    /// Asks again and again until `is_so` holds, or until `until`.
    async fn until(&self, until: Instant, is_so: impl AsyncFn() -> bool) {
        while !is_so().await && Instant::now() < until {
            sleep(self.poll()).await;
        }
    }

    /// Observes all nodes at the same time.
    async fn look<'a>(&'a self, flow: Option<&'a Flow>) -> SystemAnswers<'a> {
        let redis = join_all(self.system.redis().map(|member| self.ask_redis(member)));
        let sentinels = join_all(self.system.sentinels.iter().map(|sentinel| self.ask_sentinel(sentinel)));
        let (redis, sentinels) = join(redis, sentinels).await;
        SystemAnswers {
            system: self.system,
            options: self.options,
            redis_settings: self.redis_settings,
            flow,
            redis,
            sentinels,
            redis_user: self.servers.redis.user(),
            sentinel_user: self.servers.sentinels.user(),
        }
    }

    async fn ask_redis(&self, member: &Member) -> Result<RedisAnswers, String> {
        let ask = [
            command!("INFO", "replication"),
            command!("INFO", "persistence"),
            command!("INFO", "memory"),
            clients::subscribers(),
        ];
        let settings = self.redis_settings.keys().map(|name| command!("CONFIG", "GET", name));
        let ask: Vec<Command> = ask.into_iter().chain(settings).collect();
        let replies = send(&self.servers.redis, &member.endpoint, &ask).await?;
        let mut settings = BTreeMap::new();
        for index in 4..replies.len() {
            settings.extend(fields(reply(&replies, index)?));
        }
        let info = |index: usize| Ok::<_, String>(Info::parse(&text(reply(&replies, index)?)));
        Ok(RedisAnswers {
            replication: Replication::parse(&info(0)?),
            writes: Writes::parse(&info(1)?, &info(2)?),
            watchers: reply(&replies, 3).ok().map(clients::sentinels),
            settings,
        })
    }

    async fn ask_sentinel(&self, sentinel: &SentinelMember) -> Result<SentinelAnswers, String> {
        let group = &self.system.group;
        let ask = [
            command!("SENTINEL", "MASTER", group),
            command!("SENTINEL", "CKQUORUM", group),
            command!("SENTINEL", "SENTINELS", group),
            command!("SENTINEL", "REPLICAS", group),
            clients::all(),
            ask_for_vote(&self.system.master.announced),
            command!("INFO", "sentinel"),
        ];
        let replies = send(&self.servers.sentinels, &sentinel.endpoint, &ask).await?;
        Ok(SentinelAnswers {
            master: NamedMaster::parse(reply(&replies, 0)?),
            // If there is no quorum, the reply is an error.
            ckquorum: reply(&replies, 1).map_or_else(|why| why, text),
            sentinels: peers(reply(&replies, 2)?),
            replicas: peers(reply(&replies, 3)?),
            clients: reply(&replies, 4).ok().map(clients::sentinels),
            is_in_tilt: reply(&replies, 6)
                .is_ok_and(|info| Info::parse(&text(info)).get("sentinel_tilt") == Some("1")),
            lets_us_ask: !matches!(&replies[5], Err(error) if error.code == "NOPERM"),
        })
    }

    /// The rights of the Sentinels that are logged in as another user than ours. Each server is asked with
    /// `ACL DRYRUN`.
    async fn rights_of_others(&self, seen: &SystemAnswers<'_>) -> (Vec<Unmet>, Vec<Unproved>) {
        let failover = self
            .system
            .sentinels
            .iter()
            .any(|sentinel| sentinel.version.is_some_and(Version::always_sends_failover));
        let commands = rights::dry_run(failover);
        let redis = seen.users_on_redis().into_iter().map(async |(node, users)| {
            let what =
                "that the Sentinels, which log in as another user, have the rights that a failover needs";
            dry_runs(&self.servers.redis, &node, &users, &commands, what).await
        });
        let votes = vec![("sentinel|is-master-down-by-addr", ask_for_vote(&self.system.master.announced))];
        let sentinels = seen.users_on_sentinels().into_iter().map(async |(node, users)| {
            let what = "that the other Sentinels, which log in as another user, can ask for its vote";
            dry_runs(&self.servers.sentinels, &node, &users, &votes, what).await
        });
        let (redis, sentinels) = join(join_all(redis), join_all(sentinels)).await;
        let (mut unmet, mut unproved) = (Vec::new(), Vec::new());
        for answer in redis.into_iter().chain(sentinels) {
            match answer {
                Ok(lacks) => unmet.extend(lacks),
                Err(missing) => unproved.push(missing),
            }
        }
        (unmet, unproved)
    }
}

/// What can't be checked on a server without `ACL DRYRUN`.
const CANNOT_BE_ASKED: &str =
    "what the Sentinels that log in as another user can send (this can be checked since Redis 7.0)";

/// Asks a node which of these commands it would reject from these users.
async fn dry_runs(
    connections: &Connections,
    node: &Endpoint,
    users: &BTreeSet<String>,
    commands: &[(rights::Right, Command)],
    what: &'static str,
) -> Result<Option<Unmet>, Unproved> {
    let tries: Vec<_> =
        users.iter().flat_map(|user| commands.iter().map(move |command| (user, command))).collect();
    let ask: Vec<Command> = tries
        .iter()
        .map(|(user, (_, command))| {
            let words = ["ACL", "DRYRUN", user.as_str()].into_iter();
            Command::new(words.chain(command.words().iter().map(String::as_str)))
        })
        .collect();
    let unproved = || Unproved { right: Some("+acl|dryrun".to_owned()), what, node: node.clone() };
    let replies = connections.send(node, &ask).await.map_err(|_| unproved())?;
    for ((user, (right, _)), reply) in tries.iter().zip(&replies) {
        match reply {
            Ok(Value::Okay) => {}
            Ok(_) => {
                let what =
                    format!("does not let the user `{user}` of the Sentinels send what `+{right}` allows");
                return Ok(Some(
                    Unmet::new(node, what).hint(format!("ACL SETUSER {user} +{right} on {node}")),
                ));
            }
            // If the server does not have this command, its Sentinels do not send it.
            Err(error) if error.detail.contains("not found") => {}
            // Redis 6.2 has no `ACL DRYRUN`.
            Err(error) if error.detail.to_ascii_lowercase().starts_with("unknown subcommand") => {
                return Err(Unproved { what: CANNOT_BE_ASKED, ..unproved() });
            }
            Err(_) => return Err(unproved()),
        }
    }
    Ok(None)
}

async fn send(
    connections: &Connections,
    node: &Endpoint,
    commands: &[Command],
) -> Result<Vec<Reply>, String> {
    connections.send(node, commands).await.map_err(|error| error.to_string())
}

fn reply(replies: &[Reply], index: usize) -> Result<&Value, String> {
    replies[index].as_ref().map_err(ToString::to_string)
}
