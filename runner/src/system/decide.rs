//! Decides from the observation which server is the master, and what to change. No I/O.
//!
//! The first rule that applies decides the master:
//!
//! 1. the Sentinels: the master that a Sentinel already monitors stays the master;
//! 2. `--master`: the server that the operator names;
//! 3. replication: a server that already has registered replicas;
//! 4. data: the one server that holds data;
//! 5. otherwise the first server to register.
//!
//! A change that would lose data or contradict the Sentinels is a [`Refusal`]. A problem that may pass
//! without a change is a [`Wait`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use broker_fn::api::{Expected, Group, may_be_restored};

use super::members::{Member, SentinelMember, System};
use super::observe::{Observed, ObservedNode};
use super::plan::{Attach, Introduction, Plan};
use super::temporary::TemporarySetting;
use crate::node::clients::SentinelClient;
use crate::node::endpoint::Endpoint;
use crate::node::redis::{DISKLESS_DELAY, DISKLESS_LOAD, MIN_REPLICAS, ON_EMPTY_DB, RedisState};
use crate::node::replication::Role;
use crate::node::rights::{self, Lack};
use crate::node::secret::Login;
use crate::node::sentinel::{BY_NAME, Monitored, Peer, SentinelState};
use crate::node::unusable::Unusable;
use crate::node::version::Version;
use crate::words::count;

/// If an unregistered Sentinel has been connected to a server for fewer seconds than this, the run waits and
/// does not refuse: a Sentinel that has just been made to forget the server disconnects at once.
const WATCHED_FOR: u64 = 10;

/// How long after a refusal the nodes are read again before the refusal is final. The nodes were not all read
/// at the same moment, and another runner may have changed some of them in between.
pub const SECOND_LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The group: the Sentinel master name.
    pub group: Group,
    /// How many usable nodes there must be, and the quorum for Sentinels that are new to the group.
    pub expected: Expected,
    /// Whether the operator set the quorum. If so, it is set on Sentinels that have another quorum.
    pub quorum_given: bool,
    /// Options of `SENTINEL SET` for all Sentinels.
    pub options: BTreeMap<String, String>,
    /// Settings for all Redis servers.
    pub redis_settings: BTreeMap<String, String>,
    /// The node to forget, even if it is up.
    pub leaving: Leaving,
    /// The login for the Sentinels to use on the Redis servers.
    pub sentinel_login: Option<Login>,
    /// The login for the replicas to use on their master.
    pub replication_login: Option<Login>,
    /// Our user on the Redis servers, and on those Sentinels that get our login.
    pub redis_user: String,
    /// The commands that the Redis servers know by another name.
    pub renamed: BTreeMap<String, String>,
    /// The server that the operator named as the master.
    pub master: Option<Endpoint>,
    /// Whether data that the master lacks may be lost.
    pub discard_data: bool,
}

/// A node that leaves permanently, with every id and address by which Sentinels may know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaving {
    /// A Sentinel's id, or a Redis server's `run_id`.
    pub ids: Vec<String>,
    pub endpoints: Vec<Endpoint>,
}

impl Leaving {
    pub fn is(&self, peer: &Peer) -> bool {
        self.ids.contains(&peer.id) || self.endpoints.contains(&peer.endpoint)
    }
}

impl Request {
    /// The options that every Sentinel should have: those of the request, and the quorum if the operator set
    /// it.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<String, String> {
        let quorum = self.quorum_given.then(|| ("quorum".to_owned(), self.expected.quorum.to_string()));
        self.options.clone().into_iter().chain(quorum).collect()
    }
}

#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Carry this plan out. An empty plan means that everything is as it should be.
    Proceed(Box<Plan>),
    /// Nothing can be done yet. Observe again later.
    Wait(Wait),
    /// A person has to decide.
    Refuse(Refusal),
}

/// What the run waits for before it can do anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// Too few registered nodes can be used.
    #[error(
        "{usable_redis} of {expected_redis} Redis servers and {usable_sentinels} of {expected_sentinels} \
         Sentinels can be used"
    )]
    NotEnough {
        /// Distinct Redis servers that can be used.
        usable_redis: usize,
        expected_redis: u16,
        /// Distinct Sentinels that can be used.
        usable_sentinels: usize,
        expected_sentinels: u16,
    },
    /// Roles are changing at this moment.
    #[error("a failover is in progress, as {0} reports")]
    Failover(Endpoint),
    /// The master that other nodes follow or monitor does not answer, or is not a master.
    #[error(
        "{named_by} reports {master} as the master, which {problem}; waiting for the Sentinels to fail over"
    )]
    MasterDown { master: Endpoint, named_by: Endpoint, problem: &'static str },
    /// The Sentinels know this server as a replica, and will make it a replica again.
    #[error(
        "the Sentinel {named_by} knows {node} as a replica: waiting until the Sentinel makes it a \
         replica again"
    )]
    Returning { node: Endpoint, named_by: Endpoint },
    /// The server has data, but not yet in memory.
    #[error("{0} is loading its data set")]
    Loading(Endpoint),
    /// The server was restarted and has not registered again, or another server is at its address.
    #[error("{node} registered with run_id {registered}, but the server at this address has run_id {found}")]
    Replaced { node: Endpoint, registered: String, found: String },
    /// Unregistered Sentinels have just connected to the server. They may be about to leave.
    #[error("{node} is monitored by {watchers}: none of the registered Sentinels")]
    Watched { node: Endpoint, watchers: String },
    /// Some Sentinels have not heard of the last failover yet.
    #[error("the Sentinels report different masters: waiting until they agree on the newer one: {0}")]
    Converging(String),
}

/// Why nothing may be done, and how to proceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// What was found, with the names of the nodes.
    pub reason: String,
    /// What the operator can do.
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The plan would lose data or contradict the Sentinels or existing replication.
    Unsafe,
    /// A node is unusable in its current state.
    Unusable,
    /// The flags can't work with these nodes.
    Usage,
}

pub fn decide(observed: &Observed, request: &Request) -> Decision {
    match Planner::new(observed, request).and_then(Planner::plan) {
        Ok(plan) => Decision::Proceed(Box::new(plan)),
        Err(Halt::Wait(wait)) => Decision::Wait(wait),
        Err(Halt::Refuse(refusal)) => Decision::Refuse(refusal),
    }
}

enum Halt {
    Wait(Wait),
    Refuse(Refusal),
}

fn refuse<T>(reason: String, hint: impl Into<String>) -> Result<T, Halt> {
    Err(Halt::Refuse(Refusal { kind: RefusalKind::Unsafe, reason, hint: hint.into() }))
}

fn unusable<T>(reason: String, hint: impl Into<String>) -> Result<T, Halt> {
    Err(Halt::Refuse(Refusal { kind: RefusalKind::Unusable, reason, hint: hint.into() }))
}

fn wait<T>(wait: Wait) -> Result<T, Halt> {
    Err(Halt::Wait(wait))
}

/// A Redis server that can be used.
#[derive(Clone, Copy)]
struct UsableRedis<'a> {
    endpoint: &'a Endpoint,
    state: &'a RedisState,
}

/// A Sentinel that can be used.
#[derive(Clone, Copy)]
struct UsableSentinel<'a> {
    endpoint: &'a Endpoint,
    state: &'a SentinelState,
}

/// A Sentinel that monitors the group, and what the Sentinel knows of it.
#[derive(Clone, Copy)]
struct MonitoringSentinel<'a> {
    sentinel: &'a Endpoint,
    monitored: &'a Monitored,
}

impl<'a> MonitoringSentinel<'a> {
    /// The address of the master that the Sentinel reports.
    fn names(self) -> &'a Endpoint {
        &self.monitored.master.endpoint
    }
}

/// The chosen master: its index in [`Planner::redis`], its address for the other nodes, and the reason.
struct MasterChoice {
    index: usize,
    announced: Endpoint,
    because: &'static str,
}

/// Which peers a Sentinel is assumed to know.
#[derive(Clone, Copy)]
enum Knows {
    ItsPeers,
    NoPeer,
}

/// The usable nodes, in the order of registration.
struct Planner<'a> {
    request: &'a Request,
    redis: Vec<UsableRedis<'a>>,
    sentinels: Vec<UsableSentinel<'a>>,
    /// The registered Redis servers that are not usable now.
    absent_redis: Vec<&'a Endpoint>,
    /// How many registered Sentinels are not usable now.
    absent_sentinels: usize,
    left_out: Vec<(Endpoint, Unusable)>,
}

impl<'a> Planner<'a> {
    /// Collects the usable nodes. Halts if they are not enough.
    fn new(observed: &'a Observed, request: &'a Request) -> Result<Self, Halt> {
        let redis: Vec<_> =
            usable(&observed.redis).map(|(endpoint, state)| UsableRedis { endpoint, state }).collect();
        let sentinels: Vec<_> =
            usable(&observed.sentinels).map(|(endpoint, state)| UsableSentinel { endpoint, state }).collect();
        let left_out = observed.problems();
        if let Some((endpoint, problem)) = left_out.iter().find(|(_, problem)| !problem.may_pass()) {
            return unusable(format!("{endpoint} can't be used: {problem}"), problem.hint());
        }
        each_server_is_one(&redis)?;
        each_sentinel_is_one(&sentinels)?;
        each_server_has_its_own_address(&redis)?;
        each_sentinel_has_its_own_address(&sentinels)?;
        for (endpoint, problem) in &left_out {
            // The run waits: the master depends on the data of this server, which is not known yet.
            if *problem == Unusable::Loading {
                return wait(Wait::Loading(endpoint.clone()));
            }
            if let Unusable::Replaced { registered, found } = problem {
                let (node, registered, found) = (endpoint.clone(), registered.clone(), found.clone());
                return wait(Wait::Replaced { node, registered, found });
            }
        }
        let Expected { redis: expected_redis, sentinels: expected_sentinels, .. } = request.expected;
        if redis.len() < expected_redis.into() || sentinels.len() < expected_sentinels.into() {
            return wait(Wait::NotEnough {
                usable_redis: redis.len(),
                expected_redis,
                usable_sentinels: sentinels.len(),
                expected_sentinels,
            });
        }
        if let Some(node) = redis.iter().find(|node| node.state.failing_over) {
            return wait(Wait::Failover(node.endpoint.clone()));
        }
        let absent_redis =
            observed.redis.iter().filter(|node| node.state.is_err()).map(|node| &node.endpoint).collect();
        let absent_sentinels = observed.sentinels.iter().filter(|node| node.state.is_err()).count();
        Ok(Self { request, redis, sentinels, absent_redis, absent_sentinels, left_out })
    }

    fn plan(self) -> Result<Plan, Halt> {
        let choice = self.choose_master()?;
        let attach = self.attach(choice.index)?;
        self.sentinels_take_names(&choice.announced)?;
        self.monitored_under_one_name()?;
        self.no_other_system_monitors()?;
        self.commands_are_accepted(&choice, &attach)?;
        self.a_replica_can_be_promoted(&choice)?;
        self.login_survives_in_files()?;
        self.clients_can_write(&choice)?;
        let master = self.redis[choice.index];
        let configure =
            self.sentinels.iter().map(|sentinel| (sentinel.endpoint.clone(), self.options_to_set(sentinel)));
        let introduce = self
            .sentinels
            .iter()
            .map(|sentinel| self.introduction(sentinel, &choice.announced, Knows::ItsPeers));
        let forgetful: Vec<_> =
            self.sentinels.iter().filter(|sentinel| self.includes_lost_nodes(sentinel)).collect();
        let evict = if forgetful.is_empty() { Vec::new() } else { self.connections_of_lost_sentinels() };
        let reset = forgetful
            .into_iter()
            .map(|sentinel| self.introduction(sentinel, &choice.announced, Knows::NoPeer))
            .collect();
        Ok(Plan {
            because: choice.because,
            promote: master.state.role != Role::Master,
            release: self.release(),
            temporary: self.temporary(master, &attach),
            credentials: self.credentials(),
            settings: self.redis_settings_to_set(),
            replication_login: self.request.replication_login.clone(),
            attach,
            authenticate: self.authenticate(),
            sentinel_login: self.request.sentinel_login.clone(),
            renamed: self.request.renamed.clone(),
            monitor: self.new_sentinels(),
            quorum: self.request.expected.quorum,
            configure: configure.filter(|(_, options)| !options.is_empty()).collect(),
            evict,
            reset,
            introduce: introduce.filter(|introduction| !introduction.hellos.is_empty()).collect(),
            system: self.system(&choice),
            left_out: self.left_out,
        })
    }

    /// The system after the plan was carried out.
    fn system(&self, choice: &MasterChoice) -> System {
        let member = |node: &UsableRedis<'_>| Member {
            endpoint: node.endpoint.clone(),
            announced: node.state.announced.clone(),
            aliases: node.state.aliases.clone(),
            run_id: node.state.run_id.clone(),
            settings: node.state.settings.with(&self.request.redis_settings),
            lacks: node.state.lacks.clone(),
        };
        let sentinel = |node: &UsableSentinel<'_>| SentinelMember {
            endpoint: node.endpoint.clone(),
            announced: node.state.announced.clone(),
            id: node.state.my_id.clone(),
            sentinel_user: node.state.sentinel_user.clone(),
            version: node.state.version,
            knows_by_address: self.known_by_address(node),
        };
        System {
            group: self.request.group.clone(),
            master: Member { announced: choice.announced.clone(), ..member(&self.redis[choice.index]) },
            replicas: self.others(choice.index).map(member).collect(),
            sentinels: self.sentinels.iter().map(sentinel).collect(),
        }
    }

    /// Nodes with host names need Sentinels that accept host names and keep them, because such a node may
    /// have another address tomorrow. Sentinels that already monitor the group by addresses may go on:
    /// [`SentinelMember::knows_by_address`].
    fn sentinels_take_names(&self, master: &Endpoint) -> Result<(), Halt> {
        let servers = self.redis.iter().map(|node| node.endpoint);
        let sentinels = self.sentinels.iter().map(|node| node.endpoint);
        let Some(named) = [master].into_iter().chain(servers).chain(sentinels).find(|at| at.is_name()) else {
            return Ok(());
        };
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.state.monitored.is_none()) {
            let (state, at) = (sentinel.state, sentinel.endpoint);
            let are_on = [state.resolves_hostnames, state.announces_hostnames];
            let settings = BY_NAME.into_iter().zip(are_on);
            let lacks: Vec<&str> = settings.filter(|(_, is_on)| !is_on).map(|(setting, _)| setting).collect();
            if lacks.is_empty() {
                continue;
            }
            let off: Vec<String> = lacks.iter().map(|setting| format!("`{setting} no`")).collect();
            let set = |setting: &&str| {
                format!("redis-cli -h {} -p {} SENTINEL CONFIG SET {setting} yes", at.host, at.port)
            };
            let hint: Vec<String> = lacks.iter().map(set).collect();
            return unusable(
                format!("the Sentinel {at} has {}, but {named} is a host name", off.join(" and ")),
                hint.join("; "),
            );
        }
        Ok(())
    }

    /// A server that has a host name, but that this Sentinel knows by an address.
    fn known_by_address(&self, sentinel: &UsableSentinel<'_>) -> Option<Endpoint> {
        let monitored = sentinel.state.monitored.as_ref()?;
        let replicas = monitored.replicas.iter().map(|replica| &replica.endpoint);
        let mut known = [&monitored.master.endpoint].into_iter().chain(replicas).filter(|at| !at.is_name());
        known
            .find(|at| self.redis.iter().any(|node| node.endpoint.is_name() && node.state.is_at(at)))
            .cloned()
    }

    /// No Sentinel monitors one of the servers for another group as well. Such a Sentinel would fail over
    /// twice, once for each group, perhaps to different replicas.
    fn monitored_under_one_name(&self) -> Result<(), Halt> {
        let group = self.request.group.as_str();
        for UsableSentinel { endpoint, state } in &self.sentinels {
            for other in state.masters.iter().filter(|master| master.name != group) {
                let Some(node) = self.redis.iter().find(|node| node.state.is_at(&other.endpoint)) else {
                    continue;
                };
                return refuse(
                    format!(
                        "the Sentinel {endpoint} already monitors {} as `{}`: two groups would fail it over \
                         against each other",
                        node.endpoint, other.name
                    ),
                    format!(
                        "set --group {0}; or, if clients ask the Sentinels for `{group}` and no client asks for \
                         `{0}`: SENTINEL REMOVE {0} on each Sentinel, then run this again",
                        other.name
                    ),
                );
            }
        }
        Ok(())
    }

    /// No Sentinel of another system monitors one of the servers. Two systems would undo each other's
    /// failovers.
    fn no_other_system_monitors(&self) -> Result<(), Halt> {
        let is_ours = |client: &&SentinelClient| {
            self.sentinels.iter().any(|UsableSentinel { state, .. }| {
                let peers = state.monitored.iter().flat_map(|monitored| monitored.peers.keys());
                client.is(&state.my_id) || peers.into_iter().any(|id| client.is(id))
            })
        };
        for node in &self.redis {
            let strangers: Vec<_> =
                node.state.watchers.iter().flatten().filter(|client| !is_ours(client)).collect();
            // The id of a Sentinel that does not answer is unknown. So up to as many of these clients as
            // there are silent Sentinels may belong to this system.
            let ids: BTreeSet<_> = strangers.iter().map(|client| client.id.as_str()).collect();
            if ids.len() <= self.absent_sentinels {
                continue;
            }
            let hosts: BTreeSet<_> = strangers.iter().map(|client| client.from.host.as_str()).collect();
            let hosts = hosts.into_iter().collect::<Vec<_>>().join(", ");
            if strangers.iter().all(|client| client.age < WATCHED_FOR) {
                let watchers = count(ids.len(), "Sentinel") + " at " + &hosts;
                return wait(Wait::Watched { node: node.endpoint.clone(), watchers });
            }
            return refuse(
                format!(
                    "{} is monitored by {} that {} not part of this system, at {hosts}: another system may \
                     use the server",
                    node.endpoint,
                    count(ids.len(), "Sentinel"),
                    if ids.len() == 1 { "is" } else { "are" }
                ),
                format!(
                    "if another system uses {0} (SENTINEL MASTERS on those Sentinels shows it), deregister \
                     it here (`sentinel-runner deregister redis {0}`), or register those Sentinels and set \
                     --group to their group; if none does: SENTINEL REMOVE NAME on each of those Sentinels, \
                     which then stop monitoring it; if the machine of such a Sentinel is dead: CLIENT KILL \
                     TYPE pubsub on {0}, which disconnects all subscribers",
                    node.endpoint
                ),
            );
        }
        Ok(())
    }

    /// Every server accepts what the Sentinels send in a failover, and what this run sends.
    fn commands_are_accepted(&self, choice: &MasterChoice, attach: &[Attach]) -> Result<(), Halt> {
        let failover = self
            .sentinels
            .iter()
            .any(|sentinel| sentinel.state.version.is_some_and(Version::always_sends_failover));
        let of_sentinel = rights::OF_SENTINEL.into_iter().chain(failover.then_some(rights::FAILOVER));
        let of_sentinel: Vec<_> = of_sentinel.collect();
        let master = &self.redis[choice.index];
        let promote = master.state.role != Role::Master;
        for node in &self.redis {
            let changes = attach.iter().any(|attach| attach.node == *node.endpoint)
                || (promote && node.endpoint == master.endpoint);
            let ours = self.sentinels_use_our_user(node);
            for (&right, &lack) in &node.state.lacks {
                let who = match (lack, of_sentinel.contains(&right)) {
                    (Lack::Unknown, true) => "which the Sentinels send",
                    (Lack::Denied, true) if ours => "which the Sentinels send",
                    _ if right == rights::REPLICAOF && changes => "which makes a server a replica",
                    _ => continue,
                };
                return self.not_taken(node, right, lack, who);
            }
        }
        Ok(())
    }

    fn not_taken(
        &self,
        node: &UsableRedis<'_>,
        right: rights::Right,
        lack: Lack,
        who: &str,
    ) -> Result<(), Halt> {
        let command = right.replace('|', " ").to_ascii_uppercase();
        let (endpoint, user) = (node.endpoint, &self.request.redis_user);
        match lack {
            Lack::Denied => unusable(
                format!(
                    "{endpoint} does not let the user `{user}` send `{command}`, {who}: no failover \
                     could succeed"
                ),
                format!("ACL SETUSER {user} +{right} on {endpoint}"),
            ),
            Lack::Unknown => {
                let name = command.split(' ').next().unwrap_or_default();
                unusable(
                    format!(
                        "{endpoint} does not know the command `{name}`, {who}: no failover could succeed"
                    ),
                    format!(
                        "remove `rename-command {name}` from its configuration and restart it; or set \
                         --rename-command {name}=NEW-NAME: `sentinel-runner bootstrap` then also sends each \
                         Sentinel SENTINEL SET {} rename-command {name} NEW-NAME",
                        self.request.group
                    ),
                )
            }
        }
    }

    /// Whether Sentinels log in to this server as our user. That holds for Sentinels that do not monitor the
    /// group yet, for Sentinels that get our login, and for Sentinels that are connected as our user.
    fn sentinels_use_our_user(&self, node: &UsableRedis<'_>) -> bool {
        let is_new = self.sentinels.iter().any(|sentinel| sentinel.state.monitored.is_none());
        is_new
            || !self.authenticate().is_empty()
            || node.state.watchers.iter().flatten().any(|client| client.user == self.request.redis_user)
    }

    /// Sentinel never promotes a replica with priority 0.
    fn a_replica_can_be_promoted(&self, choice: &MasterChoice) -> Result<(), Halt> {
        let mut others = self.others(choice.index).peekable();
        let Some(first) = others.peek().map(|node| node.endpoint) else { return Ok(()) };
        if !others.all(|node| node.state.settings.priority() == Some(0)) {
            return Ok(());
        }
        let nodes = self.others(choice.index).map(|node| node.endpoint.to_string());
        unusable(
            format!(
                "no failover could succeed: `replica-priority` is 0 on every server except the master \
                 {}: {}",
                self.redis[choice.index].endpoint,
                nodes.collect::<Vec<_>>().join(", ")
            ),
            format!(
                "CONFIG SET replica-priority 100 on {first}; but if its `join` stands back because another \
                 server has more data, start that server instead"
            ),
        )
    }

    /// A Sentinel writes its login into its file, and most versions write it without quotes.
    fn login_survives_in_files(&self) -> Result<(), Halt> {
        let Some(login) = &self.request.sentinel_login else { return Ok(()) };
        self.login_has_survived(login)?;
        let given = self.authenticate();
        let unquoted = self.sentinels.iter().find(|sentinel| {
            given.contains(sentinel.endpoint)
                && !sentinel.state.version.is_some_and(Version::quotes_passwords)
        });
        let Some(odd) = login.oddity(unquoted.is_none()) else { return Ok(()) };
        let sentinel =
            unquoted.map_or_else(|| given.first().cloned(), |sentinel| Some(sentinel.endpoint.clone()));
        let Some(sentinel) = sentinel else { return Ok(()) };
        Err(Halt::Refuse(Refusal {
            kind: RefusalKind::Usage,
            reason: format!(
                "the login for the Redis servers contains {odd}: the Sentinel {sentinel} would write the \
                 login into its file as it is, and could not start again"
            ),
            hint: "use a password of letters, digits and other visible characters, without quotes".into(),
        }))
    }

    /// Makes the check of [`Self::login_survives_in_files`] for a Sentinel that already has the login. Such a
    /// Sentinel works until it restarts.
    fn login_has_survived(&self, login: &Login) -> Result<(), Halt> {
        let uses_our_user = |sentinel: &UsableSentinel<'_>| {
            let mut watchers = self.redis.iter().flat_map(|node| node.state.watchers.iter().flatten());
            watchers.any(|client| client.is(&sentinel.state.my_id) && client.user == self.request.redis_user)
        };
        let odd = self.sentinels.iter().find_map(|sentinel| {
            let has_it = sentinel.state.monitored.is_some() && uses_our_user(sentinel);
            let odd = login.oddity(sentinel.state.version.is_some_and(Version::quotes_passwords));
            odd.filter(|_| has_it).map(|odd| (sentinel, odd))
        });
        let Some((sentinel, odd)) = odd else { return Ok(()) };
        unusable(
            format!(
                "the Sentinel {} has a login for the Redis servers that contains {odd}, and writes the \
                 login into its file as it is: it could not start again",
                sentinel.endpoint
            ),
            "change the password to one without blanks and quotes: `sentinel-runner rotate \
             --new-password-file FILE`",
        )
    }

    fn clients_can_write(&self, choice: &MasterChoice) -> Result<(), Halt> {
        let master = &self.redis[choice.index];
        let replicas = self.redis.len() - 1;
        let number = |text: &String| text.parse::<usize>().unwrap_or_default();
        let wanted = self.request.redis_settings.get(MIN_REPLICAS).map(number);
        if let Some(wanted) = wanted.filter(|&wanted| wanted > 0 && replicas <= wanted) {
            return refuse(
                format!(
                    "with `{MIN_REPLICAS}` {wanted} and {} no client could write as soon as one replica is gone",
                    count(replicas, "replica")
                ),
                format!("add replicas until there are {}, or remove that setting", wanted + 1),
            );
        }
        let needed = wanted.unwrap_or_else(|| master.state.settings.number(MIN_REPLICAS).unwrap_or_default());
        if needed <= replicas {
            return Ok(());
        }
        unusable(
            format!(
                "no client could write to the master {}: its `min-replicas-to-write` is {needed}, and it has {}",
                master.endpoint,
                count(replicas, "replica")
            ),
            format!(
                "add replicas; or CONFIG SET min-replicas-to-write {replicas} on {}, but then more writes \
                 are lost if that master is cut off",
                master.endpoint
            ),
        )
    }

    /// The held servers, each with its priority for afterwards. All held servers are released.
    fn release(&self) -> BTreeMap<Endpoint, String> {
        let held = self.redis.iter().filter(|node| node.state.role == Role::Held);
        held.filter_map(|node| Some((node.endpoint.clone(), node.state.settings.priority()?.to_string())))
            .collect()
    }

    /// Settings that are changed temporarily, so that the replicas are up soon.
    fn temporary(&self, master: UsableRedis<'_>, attach: &[Attach]) -> Vec<TemporarySetting> {
        let mut temporary = Vec::new();
        if attach.is_empty() {
            return temporary;
        }
        if let Some(before) =
            master.state.settings.get(DISKLESS_DELAY).filter(|before| may_be_restored(DISKLESS_DELAY, before))
        {
            let (node, before) = (master.endpoint.clone(), before.to_owned());
            temporary.push(TemporarySetting { node, name: DISKLESS_DELAY, value: "0", before });
        }
        for node in self.redis.iter().filter(|node| attach.iter().any(|attach| attach.node == *node.endpoint))
        {
            let before = node.state.settings.get(DISKLESS_LOAD).filter(|&before| before == "disabled");
            let is_slow = node.state.version.is_some_and(Version::downloads_in_the_background);
            if let Some(before) = before.filter(|_| is_slow && node.state.data.is_empty()) {
                let (node, before) = (node.endpoint.clone(), before.to_owned());
                temporary.push(TemporarySetting { node, name: DISKLESS_LOAD, value: ON_EMPTY_DB, before });
            }
        }
        temporary
    }

    /// The Sentinels that monitor nothing yet. If the Sentinel with the lowest id is among them, it comes
    /// first.
    fn new_sentinels(&self) -> Vec<Endpoint> {
        let deciding = self.sentinels.iter().min_by_key(|sentinel| &sentinel.state.my_id);
        let new = self.sentinels.iter().filter(|sentinel| sentinel.state.monitored.is_none());
        let mut new: Vec<_> = new.map(|sentinel| sentinel.endpoint.clone()).collect();
        if let Some(first) =
            new.iter().position(|endpoint| deciding.is_some_and(|node| node.endpoint == endpoint))
        {
            new[..=first].rotate_right(1);
        }
        new
    }

    fn choose_master(&self) -> Result<MasterChoice, Halt> {
        if let Some(choice) = self.master_of_the_sentinels()? {
            return Ok(choice);
        }
        let (index, because) = if let Some(wanted) = &self.request.master {
            (self.wanted(wanted)?, "named with --master")
        } else if let Some(index) = self.master_with_replicas()? {
            (index, "the others replicate it already")
        } else if let Some(index) = self.master_with_data()? {
            (index, "it holds the data")
        } else {
            // `new` has ensured that there is at least one.
            (0, "the first to register")
        };
        Ok(MasterChoice { index, announced: self.redis[index].state.announced.clone(), because })
    }

    /// The server that the operator named.
    fn wanted(&self, wanted: &Endpoint) -> Result<usize, Halt> {
        match self.position(wanted) {
            Some(index) => Ok(index),
            None => refuse(
                format!("{wanted}, the server of --master, is not among the usable registered Redis servers"),
                "start and register that server, or name another one with --master",
            ),
        }
    }

    /// The rule of the Sentinels: the master that a Sentinel already monitors stays the master.
    fn master_of_the_sentinels(&self) -> Result<Option<MasterChoice>, Halt> {
        let monitoring: Vec<MonitoringSentinel<'_>> = self
            .sentinels
            .iter()
            .filter_map(|UsableSentinel { endpoint: sentinel, state }| {
                Some(MonitoringSentinel { sentinel, monitored: state.monitored.as_ref()? })
            })
            .collect();
        let Some(&first) = monitoring.first() else { return Ok(None) };
        no_failover_is_under_way(&monitoring)?;
        self.sentinels_agree(&monitoring)?;
        let has_replicas = monitoring.iter().any(|witness| witness.monitored.master.replicas() > 0);
        let Some(index) = self.position(first.names()) else {
            return self.named_master_is_absent(first, has_replicas);
        };
        self.operator_names_no_other(first, index)?;
        self.named_is_up(first.names(), &monitoring, has_replicas)?;
        self.named_master_is_a_master(first, &monitoring, index)?;
        let announced = first.names().clone();
        Ok(Some(MasterChoice { index, announced, because: "the Sentinels monitor it already" }))
    }

    /// Decides if the master that the Sentinels report is not among the usable servers.
    fn named_master_is_absent<T>(
        &self,
        witness: MonitoringSentinel<'_>,
        has_replicas: bool,
    ) -> Result<T, Halt> {
        let (named, sentinel, group) = (witness.names(), witness.sentinel, &self.request.group);
        let down = |problem| Wait::MasterDown { master: named.clone(), named_by: sentinel.clone(), problem };
        if self.absent_redis.contains(&named) {
            if has_replicas {
                return wait(down("does not answer"));
            }
            return refuse(
                format!(
                    "the Sentinel {sentinel} monitors {named}, which does not answer, and knows no replica \
                     to fail over to"
                ),
                format!("start {named} again; {}", self.hint_for_lost_master(named)),
            );
        }
        // The announced address of a server that does not answer is unknown. So the named master may be one
        // of the servers that do not answer.
        if !self.absent_redis.is_empty() {
            return wait(down("is none of the servers that answer"));
        }
        refuse(
            format!(
                "the Sentinel {sentinel} monitors {named}, which is not registered: the Sentinel may \
                 belong to another system"
            ),
            format!(
                "if {named} belongs to this system, register it: `sentinel-runner register redis {named}`; \
                 if it belongs to another system, set another --group; if no system uses it any more: \
                 SENTINEL REMOVE {group} on each Sentinel, which then stops monitoring it"
            ),
        )
    }

    /// The hint for a master that is gone permanently. Its data is lost.
    fn hint_for_lost_master(&self, master: &Endpoint) -> String {
        format!(
            "if {master} and its data are gone permanently: `sentinel-runner deregister redis {master}`, \
             then SENTINEL REMOVE {} on each Sentinel, then `sentinel-runner bootstrap`, which makes \
             another server the master, without the data that only {master} has",
            self.request.group
        )
    }

    fn operator_names_no_other(&self, witness: MonitoringSentinel<'_>, named: usize) -> Result<(), Halt> {
        match &self.request.master {
            Some(wanted) if self.position(wanted) != Some(named) => refuse(
                format!(
                    "the Sentinel {} monitors {}, but --master is {wanted}",
                    witness.sentinel,
                    witness.names()
                ),
                format!(
                    "remove --master, and change the master afterwards: `sentinel-runner failover --to \
                     {wanted}`"
                ),
            ),
            Some(_) | None => Ok(()),
        }
    }

    fn named_is_up(
        &self,
        named: &Endpoint,
        monitoring: &[MonitoringSentinel<'_>],
        has_replicas: bool,
    ) -> Result<(), Halt> {
        let down = monitoring.iter().find(|witness| witness.monitored.master.has_flag("o_down"));
        let Some(&MonitoringSentinel { sentinel, .. }) = down else { return Ok(()) };
        if has_replicas {
            return wait(Wait::MasterDown {
                master: named.clone(),
                named_by: sentinel.clone(),
                problem: "is down for the Sentinels",
            });
        }
        refuse(
            format!(
                "the Sentinel {sentinel} considers the master {named} down, and knows no replica to fail \
                 over to"
            ),
            format!("make {named} reachable for the Sentinels; {}", self.hint_for_lost_master(named)),
        )
    }

    /// Before the first failover, only a second runner can have made the named master a replica: this run
    /// then attaches the servers to the master that the Sentinels monitor. After a failover, the Sentinels
    /// themselves are correcting the roles.
    fn named_master_is_a_master(
        &self,
        first: MonitoringSentinel<'_>,
        monitoring: &[MonitoringSentinel<'_>],
        index: usize,
    ) -> Result<(), Halt> {
        let (named, sentinel) = (first.names(), first.sentinel);
        let of = match &self.redis[index].state.role {
            Role::Master => return Ok(()),
            Role::Held => {
                return wait(Wait::MasterDown {
                    master: named.clone(),
                    named_by: sentinel.clone(),
                    problem: "is held by its `join` until `join` knows whether its data is the newest (if \
                        you are sure of that: REPLICAOF NO ONE on it makes it a master that takes writes, \
                        and its replicas lose data that only they have)",
                });
            }
            Role::Replica { of, .. } => of,
        };
        if monitoring.iter().any(|witness| witness.monitored.master.config_epoch() > 0) {
            return wait(Wait::MasterDown {
                master: named.clone(),
                named_by: sentinel.clone(),
                problem: "is a replica",
            });
        }
        if self.position(of).is_none() {
            return refuse(
                format!(
                    "{named}, which the Sentinel {sentinel} monitors, replicates {of}, which is not registered"
                ),
                hint_for_unregistered_master(named, of),
            );
        }
        Ok(())
    }

    fn sentinels_agree(&self, monitoring: &[MonitoringSentinel<'_>]) -> Result<(), Halt> {
        // The name and the address of one server are the same answer.
        let answer = |witness: &MonitoringSentinel<'_>| match self.position(witness.names()) {
            Some(index) => self.redis[index].endpoint.clone(),
            None => witness.names().clone(),
        };
        let answers: BTreeSet<_> = monitoring.iter().map(answer).collect();
        if answers.len() < 2 {
            return Ok(());
        }
        let listed =
            monitoring.iter().map(|witness| format!("{} reports {}", witness.sentinel, witness.names()));
        let listed = listed.collect::<Vec<_>>().join(", ");
        // The Sentinels take over the greater epoch as soon as they hear of each other.
        let epoch = |witness: &&MonitoringSentinel<'_>| witness.monitored.master.config_epoch();
        let newest = monitoring.iter().map(|witness| epoch(&witness)).max();
        let winners: BTreeSet<_> =
            monitoring.iter().filter(|witness| Some(epoch(witness)) == newest).map(answer).collect();
        if winners.len() == 1 {
            return wait(Wait::Converging(listed));
        }
        refuse(
            format!("the Sentinels monitor different masters, and can't agree without help: {listed}"),
            format!(
                "choose the master that clients use (INFO on each master shows its keys and replicas); then \
                 SENTINEL REMOVE {0} on each Sentinel that reports another master, and run this again; but \
                 if the other master belongs to another system, do not remove it: deregister its Sentinels \
                 here, or set another --group than {0}",
                self.request.group
            ),
        )
    }

    /// The rule of replication: a master that has registered replicas stays the master.
    fn master_with_replicas(&self) -> Result<Option<usize>, Halt> {
        let mut roots = BTreeSet::new();
        for (index, node) in self.redis.iter().enumerate() {
            let Role::Replica { of, .. } = &node.state.role else { continue };
            if node.state.is_at(of) {
                continue;
            }
            if self.position(of).is_none() {
                // The announced address of a server that does not answer is unknown. So the master may be one
                // of the servers that do not answer.
                if !self.absent_redis.is_empty() {
                    return wait(Wait::MasterDown {
                        master: of.clone(),
                        named_by: node.endpoint.clone(),
                        problem: "is none of the servers that answer",
                    });
                }
                return refuse(
                    format!("{} replicates {of}, which is not registered", node.endpoint),
                    hint_for_unregistered_master(node.endpoint, of),
                );
            }
            match self.root(index) {
                Some(root) => {
                    roots.insert(root);
                }
                // Without data, any choice is safe: runners that raced each other have left this circle.
                None if self.redis.iter().all(|node| node.state.data.is_empty()) => {}
                None => {
                    return refuse(
                        format!("{} and {of} replicate each other: neither is a master", node.endpoint),
                        format!(
                            "choose the server whose data you keep, {} or {of}, and send it REPLICAOF NO \
                             ONE: it takes writes, and its data replaces the other server's data at once",
                            node.endpoint
                        ),
                    );
                }
            }
        }
        let mut roots = roots.into_iter();
        match (roots.next(), roots.next()) {
            (root, None) => Ok(root),
            (Some(one), Some(other)) => refuse(
                format!(
                    "{} and {} both have replicas already",
                    self.redis[one].endpoint, self.redis[other].endpoint
                ),
                "set --master to the server whose data you keep; if the other server or its replicas hold \
                 data that this server lacks, save that data first, and add --discard-data, which deletes it",
            ),
            (None, Some(_)) => unreachable!("an iterator that has ended stays so"),
        }
    }

    /// The rule of data: the server that holds data becomes the master, so that nothing is lost.
    fn master_with_data(&self) -> Result<Option<usize>, Halt> {
        let holders: Vec<usize> =
            (0..self.redis.len()).filter(|&index| !self.redis[index].state.data.is_empty()).collect();
        if holders.is_empty() {
            return Ok(None);
        }
        let has_all = |&index: &usize| {
            holders.iter().all(|&other| {
                other == index || self.redis[index].state.has_all_data_of(self.redis[other].state)
            })
        };
        match holders.iter().copied().find(has_all) {
            Some(index) => Ok(Some(index)),
            None => {
                let listed: Vec<_> = holders
                    .iter()
                    .map(|&index| {
                        format!("{} ({})", self.redis[index].endpoint, self.redis[index].state.data)
                    })
                    .collect();
                refuse(
                    format!("more than one server holds data that the others lack: {}", listed.join(", ")),
                    "save the data that you need; then set --master to the server whose data you keep, and \
                     --discard-data, which deletes the data of all other servers",
                )
            }
        }
    }

    /// The servers to make replicas. A refusal if that would lose data.
    fn attach(&self, master: usize) -> Result<Vec<Attach>, Halt> {
        let chosen = self.redis[master];
        let mut attach = Vec::new();
        for (index, node) in self.redis.iter().enumerate().filter(|&(index, _)| index != master) {
            if matches!(&node.state.role, Role::Replica { of, .. } if chosen.state.is_at(of)) {
                continue;
            }
            let may_be_emptied = self.root(index) == Some(master)
                || chosen.state.has_all_data_of(node.state)
                || (self.request.discard_data && self.request.master.is_some());
            if !may_be_emptied {
                // This is an old master that came back. The Sentinels have replaced it, so it loses the
                // writes that it got after the failover.
                if let Some(named_by) = self.sentinel_that_has_as_replica(node) {
                    return wait(Wait::Returning { node: node.endpoint.clone(), named_by: named_by.clone() });
                }
                return refuse(
                    format!(
                        "{} holds {} that the master {} may lack: making it a replica would delete them",
                        node.endpoint, node.state.data, chosen.endpoint
                    ),
                    format!(
                        "save the data of {0} that you need; then deregister {0} (`sentinel-runner \
                         deregister redis {0}`), or delete its data, or set --master {1} --discard-data, \
                         which deletes the data of every server but {1}",
                        node.endpoint, chosen.endpoint
                    ),
                );
            }
            attach.push(Attach { node: node.endpoint.clone(), data: node.state.data });
        }
        Ok(attach)
    }

    fn sentinel_that_has_as_replica(&self, node: &UsableRedis<'_>) -> Option<&Endpoint> {
        let has = |sentinel: &&UsableSentinel<'_>| {
            let monitored = sentinel.state.monitored.as_ref();
            monitored.is_some_and(|monitored| {
                monitored.replicas.iter().any(|replica| node.state.is_at(&replica.endpoint))
            })
        };
        self.sentinels.iter().find(has).map(|sentinel| sentinel.endpoint)
    }

    /// The Redis servers that have another replication login than the wanted one.
    fn credentials(&self) -> Vec<Endpoint> {
        let Some(wanted) = &self.request.replication_login else { return Vec::new() };
        // If the login can't be read, it is set once, before any Sentinel monitors.
        let fresh = self.sentinels.iter().all(|sentinel| sentinel.state.monitored.is_none());
        let lacks = |node: &&UsableRedis<'_>| match &node.state.replication_login {
            Some(login) => login.as_ref() != Some(wanted),
            None => fresh,
        };
        self.redis.iter().filter(lacks).map(|node| node.endpoint.clone()).collect()
    }

    /// The Sentinels that lack the login for the Redis servers. The login can't be read back. But a Sentinel
    /// that has it has read the master's `INFO`.
    fn authenticate(&self) -> Vec<Endpoint> {
        if self.request.sentinel_login.is_none() {
            return Vec::new();
        }
        let lacks = |sentinel: &&UsableSentinel<'_>| match &sentinel.state.monitored {
            None => true,
            Some(Monitored { master, .. }) => master.has_flag("s_down") || !master.was_read(),
        };
        self.sentinels.iter().filter(lacks).map(|sentinel| sentinel.endpoint.clone()).collect()
    }

    /// The options that a Sentinel lacks. A Sentinel that already monitors the group keeps its options,
    /// except for the requested ones.
    fn options_to_set(&self, sentinel: &UsableSentinel<'_>) -> BTreeMap<String, String> {
        let Some(monitored) = &sentinel.state.monitored else {
            // The quorum comes with `MONITOR`.
            return self.request.options.clone();
        };
        let mut options = self.request.wanted();
        options.retain(|name, value| monitored.master.fields.get(name) != Some(value));
        options
    }

    /// The requested settings that the Redis servers lack.
    fn redis_settings_to_set(&self) -> Vec<(Endpoint, BTreeMap<String, String>)> {
        let lacking = self.redis.iter().map(|node| {
            let mut settings = self.request.redis_settings.clone();
            settings.retain(|name, value| node.state.settings.get(name) != Some(value));
            (node.endpoint.clone(), settings)
        });
        lacking.filter(|(_, settings)| !settings.is_empty()).collect()
    }

    /// The hellos of the Sentinels that this Sentinel does not know:
    /// `ip,port,myid,current-epoch,group,master-ip,master-port,master-config-epoch`. Those Sentinels would
    /// publish the same within two seconds.
    fn introduction(&self, to: &UsableSentinel<'_>, master: &Endpoint, knows: Knows) -> Introduction {
        let peers = match knows {
            Knows::ItsPeers => to.state.monitored.as_ref().map(|monitored| &monitored.peers),
            Knows::NoPeer => None,
        };
        let known = |id: &str| peers.is_some_and(|peers| peers.contains_key(id));
        let strangers = self
            .sentinels
            .iter()
            .map(|sentinel| sentinel.state)
            .filter(|state| state.my_id != to.state.my_id && !known(&state.my_id));
        let hellos = strangers
            .map(|state| {
                let epoch = state
                    .monitored
                    .as_ref()
                    .map(|monitored| monitored.master.config_epoch())
                    .unwrap_or_default();
                format!(
                    "{},{},{},0,{},{},{},{epoch}",
                    state.announced.host,
                    state.announced.port,
                    state.my_id,
                    self.request.group,
                    master.host,
                    master.port
                )
            })
            .collect();
        Introduction { to: to.endpoint.clone(), hellos }
    }

    /// Whether a Sentinel still includes, as votes or as candidates, nodes that it has lost and that are no
    /// longer registered. A registered node that does not answer may come back, and may be known by any
    /// address. A node that a master has as its replica at this moment is not gone: the Sentinel knows it by
    /// another address than the registered one.
    fn includes_lost_nodes(&self, sentinel: &UsableSentinel<'_>) -> bool {
        let Some(monitored) = &sentinel.state.monitored else { return false };
        let is_sentinel = |id: &str| self.sentinels.iter().any(|other| other.state.my_id == id);
        let is_here = |peer: &Peer| {
            self.redis.iter().any(|UsableRedis { state, .. }| {
                state.is_at(&peer.endpoint)
                    || state.run_id == peer.id
                    || state.replicas.iter().any(|replica| replica.endpoint == peer.endpoint)
            })
        };
        let leaves = |peer: &Peer| self.request.leaving.is(peer);
        self.left_out.is_empty()
            && (monitored.peers.iter().any(|(id, peer)| leaves(peer) || peer.is_gone() && !is_sentinel(id))
                || monitored.replicas.iter().any(|peer| leaves(peer) || peer.is_gone() && !is_here(peer)))
    }

    /// The connections that Sentinels which are gone have left open on the servers. A machine that failed has
    /// not closed its connections. After such a Sentinel is forgotten, nothing shows whose these connections
    /// are.
    fn connections_of_lost_sentinels(&self) -> Vec<(Endpoint, Vec<u64>)> {
        let peers = self.sentinels.iter().filter_map(|sentinel| sentinel.state.monitored.as_ref());
        let peers = peers.flat_map(|monitored| &monitored.peers);
        let is_here = |id: &str| self.sentinels.iter().any(|sentinel| sentinel.state.my_id == id);
        let gone: BTreeSet<&str> =
            peers.filter(|(id, peer)| peer.is_gone() && !is_here(id)).map(|(id, _)| id.as_str()).collect();
        let left = self.redis.iter().map(|node| {
            let watchers = node.state.watchers.iter().flatten();
            let theirs = watchers.filter(|client| gone.iter().any(|id| client.is(id)));
            (node.endpoint.clone(), theirs.map(|client| client.connection).collect::<Vec<_>>())
        });
        left.filter(|(_, connections)| !connections.is_empty()).collect()
    }

    /// The index of the usable Redis server that has this address.
    fn position(&self, endpoint: &Endpoint) -> Option<usize> {
        self.redis.iter().position(|node| node.state.is_at(endpoint))
    }

    /// The registered master at the end of the chain that a server replicates. `None`: the chain is a circle,
    /// or ends at an unregistered server.
    fn root(&self, start: usize) -> Option<usize> {
        let mut index = start;
        for _ in 0..self.redis.len() {
            match &self.redis[index].state.role {
                Role::Replica { of, .. } if !self.redis[index].state.is_at(of) => {
                    index = self.position(of)?;
                }
                // A replica of itself follows no other server: Redis answers `REPLICAOF` with the server's
                // own address with OK.
                Role::Master | Role::Held | Role::Replica { .. } => return Some(index),
            }
        }
        None
    }

    fn others(&self, master: usize) -> impl Iterator<Item = &UsableRedis<'a>> {
        self.redis.iter().enumerate().filter(move |&(index, _)| index != master).map(|(_, node)| node)
    }
}

/// The hint for a server that replicates an unregistered server.
fn hint_for_unregistered_master(node: &Endpoint, of: &Endpoint) -> String {
    format!(
        "if {of} belongs to this system, register it: `sentinel-runner register redis {of}`; otherwise \
         REPLICAOF NO ONE on {node}: it keeps its data, no longer follows {of}, and takes writes itself"
    )
}

fn no_failover_is_under_way(monitoring: &[MonitoringSentinel<'_>]) -> Result<(), Halt> {
    match monitoring.iter().find(|witness| witness.monitored.master.has_flag("failover_in_progress")) {
        Some(witness) => wait(Wait::Failover(witness.sentinel.clone())),
        None => Ok(()),
    }
}

/// No server is registered under two addresses.
fn each_server_is_one(redis: &[UsableRedis<'_>]) -> Result<(), Halt> {
    for (index, one) in redis.iter().enumerate() {
        if let Some(other) = redis[..index].iter().find(|other| other.state.run_id == one.state.run_id) {
            return refuse(
                format!(
                    "{} and {} are one server (run_id {})",
                    other.endpoint, one.endpoint, one.state.run_id
                ),
                format!(
                    "deregister one of the two addresses: sentinel-runner deregister redis {}",
                    one.endpoint
                ),
            );
        }
    }
    Ok(())
}

/// No Sentinel is registered under two addresses, and no two Sentinels have the same id.
fn each_sentinel_is_one(sentinels: &[UsableSentinel<'_>]) -> Result<(), Halt> {
    for (index, one) in sentinels.iter().enumerate() {
        let Some(other) = sentinels[..index].iter().find(|other| other.state.my_id == one.state.my_id) else {
            continue;
        };
        let nodes = format!("{} and {}", other.endpoint, one.endpoint);
        return if one.state.run_id == other.state.run_id {
            refuse(
                format!("{nodes} are one Sentinel (id {})", one.state.my_id),
                format!(
                    "deregister one of the two addresses: sentinel-runner deregister sentinel {}",
                    one.endpoint
                ),
            )
        } else {
            refuse(
                format!("{nodes} are two Sentinels with the same id {}: they count as one", one.state.my_id),
                format!(
                    "stop {}, remove the line `sentinel myid` from its configuration file, and start it again",
                    one.endpoint
                ),
            )
        };
    }
    Ok(())
}

/// No two servers have the same address: one of them would be attached to itself, or to no server.
fn each_server_has_its_own_address(redis: &[UsableRedis<'_>]) -> Result<(), Halt> {
    for (index, one) in redis.iter().enumerate() {
        for other in &redis[..index] {
            let Some(shared) = one.state.aliases.iter().find(|alias| other.state.is_at(alias)) else {
                continue;
            };
            return refuse(
                format!("{} and {} both use the address {shared}", other.endpoint, one.endpoint),
                format!(
                    "give each an address of its own: CONFIG SET replica-announce-ip, and replica-announce-port, on {} or {}",
                    other.endpoint, one.endpoint
                ),
            );
        }
    }
    Ok(())
}

/// No two Sentinels have the same address: to the other Sentinels, they would look like one Sentinel that
/// keeps changing its id.
fn each_sentinel_has_its_own_address(sentinels: &[UsableSentinel<'_>]) -> Result<(), Halt> {
    let goes_by =
        |node: &UsableSentinel<'_>, at: &Endpoint| node.endpoint == at || node.state.announced == *at;
    for (index, one) in sentinels.iter().enumerate() {
        for other in &sentinels[..index] {
            let shared = [one.endpoint, &one.state.announced].into_iter().find(|at| goes_by(other, at));
            let Some(shared) = shared else { continue };
            return refuse(
                format!(
                    "the Sentinels {} and {} both use the address {shared}",
                    other.endpoint, one.endpoint
                ),
                format!(
                    "give each an address of its own: SENTINEL CONFIG SET announce-ip, and announce-port, on {} or {}",
                    other.endpoint, one.endpoint
                ),
            );
        }
    }
    Ok(())
}

fn usable<T>(nodes: &[ObservedNode<T>]) -> impl Iterator<Item = (&Endpoint, &T)> {
    nodes.iter().filter_map(|node| Some((&node.endpoint, node.state.as_ref().ok()?)))
}

#[cfg(test)]
mod tests;
