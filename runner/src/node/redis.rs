//! What the runner asks a Redis server, and how it reads the answers.

use std::collections::BTreeMap;
use std::fmt;

use super::clients::{self, SentinelClient};
use super::command::{Command, command};
use super::endpoint::Endpoint;
use super::info::Info;
use super::replication::{History, Replica, Replication, Role};
use super::reply::{Reply, ServerError, fields, text};
use super::rights::{self, Lacks};
use super::secret::{self, Login, Secret};
use super::version::Version;
use crate::words::count;

/// The sections of `INFO` to read. Each needs a separate command: `INFO` takes several sections only since
/// Redis 7.0.
const SECTIONS: [&str; 5] = ["server", "replication", "keyspace", "memory", "persistence"];

/// The settings to read, as patterns. Each needs a separate command: `CONFIG GET` takes several patterns only
/// since 7.0.
const SETTINGS: [&str; 8] = [
    "repl*",
    "master*",
    "min-replicas-*",
    "stop-writes-on-bgsave-error",
    "tls-replication",
    "save",
    "logfile",
    "dir",
];

/// The commands that observe a server: one round trip.
pub fn observation() -> Vec<Command> {
    let sections = SECTIONS.map(|section| command!("INFO", section));
    let settings = SETTINGS.map(|pattern| command!("CONFIG", "GET", pattern));
    sections.into_iter().chain(settings).chain([clients::subscribers()]).chain(rights::question()).collect()
}

/// The setting that makes a master wait for more replicas before it sends its data to them (on by default
/// since 7.0).
pub const DISKLESS_DELAY: &str = "repl-diskless-sync-delay";

/// The setting that decides whether a replica writes its master's data to disk before it loads the data. By
/// default it does.
pub const DISKLESS_LOAD: &str = "repl-diskless-load";

/// The value of [`DISKLESS_LOAD`] with which an empty replica loads from the network: some 60 ms instead of
/// up to a second on Valkey 9.1.
pub const ON_EMPTY_DB: &str = "on-empty-db";

/// The setting by which a Sentinel chooses the replica to promote: the lowest value first, and 0 never.
pub const PRIORITY: &str = "replica-priority";

/// How many replicas have to follow closely before a master takes writes.
pub const MIN_REPLICAS: &str = "min-replicas-to-write";

/// How closely the replicas of [`MIN_REPLICAS`] have to follow, in seconds.
pub const MIN_REPLICAS_LAG: &str = "min-replicas-max-lag";

/// The default of [`PRIORITY`].
pub const DEFAULT_PRIORITY: u32 = 100;

pub fn promote() -> Command {
    command!("REPLICAOF", "NO", "ONE")
}

/// `CONFIG SET` for one setting.
pub fn set(name: &str, value: &str) -> Command {
    command!("CONFIG", "SET", name, value)
}

/// The state of a server at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisState {
    /// A fresh id for every start of the process.
    pub run_id: String,
    pub version: Option<Version>,
    /// Whether the server runs as a Redis Cluster node.
    pub cluster: bool,
    /// Whether the server is still loading its data set.
    pub loading: bool,
    /// Whether `FAILOVER` is in progress on the server.
    pub failing_over: bool,
    pub role: Role,
    /// The replicas that are connected to the server, in any state.
    pub replicas: Vec<Replica>,
    pub data: Data,
    pub history: History,
    /// The login that the server uses on its master. `None`: it can't be read; `Some(None)`: there is none.
    pub replication_login: Option<Option<Login>>,
    pub settings: RedisSettings,
    /// What keeps the server from taking writes as a master.
    pub writes: Writes,
    /// The Sentinels that have subscribed to the server. `None` if our user may not list them.
    pub watchers: Option<Vec<SentinelClient>>,
    /// The commands that a failover needs and that the server rejects from our user.
    pub lacks: Lacks,
    /// All addresses of the server: as registered, as resolved, and as it announces itself.
    pub aliases: Vec<Endpoint>,
    /// The address for the other nodes: the announced address, or else the registered address.
    pub announced: Endpoint,
}

/// The settings of a server that can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisSettings(BTreeMap<String, String>);

impl RedisSettings {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn number<N: std::str::FromStr>(&self, name: &str) -> Option<N> {
        self.get(name)?.parse().ok()
    }

    /// 0: the server is never promoted. For a held server, this is the priority after it is held.
    pub fn priority(&self) -> Option<u32> {
        self.number(PRIORITY)
    }

    /// Whether Sentinels list this server to clients when it is a replica.
    pub fn is_announced(&self) -> bool {
        self.get("replica-announced") != Some("no")
    }

    /// The same settings, with other values for some of them.
    #[must_use]
    pub fn with(&self, others: &BTreeMap<String, String>) -> Self {
        Self(self.0.clone().into_iter().chain(others.clone()).collect())
    }

    /// The log file of the server.
    pub fn log(&self) -> Option<String> {
        match self.get("logfile")? {
            "" => None,
            file if file.starts_with('/') => Some(file.to_owned()),
            file => Some(format!("{}/{file}", self.get("dir")?)),
        }
    }

    #[cfg(test)]
    pub fn of(settings: &[(&str, &str)]) -> Self {
        Self(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

/// The values that decide whether a server takes writes as a master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writes {
    /// The last save of an RDB file has failed.
    pub save_failed: bool,
    /// The last write of the append-only file has failed.
    pub append_failed: bool,
    /// More memory is used than `maxmemory` allows, and nothing may be evicted. In bytes: used, and allowed.
    pub out_of_memory: Option<(u64, u64)>,
}

impl Writes {
    /// From the sections `persistence` and `memory`.
    pub fn parse(persistence: &Info, memory: &Info) -> Self {
        let failed = |field: &str| persistence.get(field) == Some("err");
        let number = |field: &str| memory.number::<u64>(field).unwrap_or_default();
        let (used, allowed) = (number("used_memory"), number("maxmemory"));
        // Buffers of replicas and of the append-only file are not counted (`getMaxmemoryState` in `evict.c`).
        let counted = used.saturating_sub(number("mem_not_counted_for_evict"));
        let may_evict = memory.get("maxmemory_policy").is_some_and(|policy| policy != "noeviction");
        Self {
            save_failed: failed("rdb_last_bgsave_status"),
            append_failed: failed("aof_last_write_status"),
            out_of_memory: (allowed > 0 && counted > allowed && !may_evict).then_some((used, allowed)),
        }
    }
}

impl RedisState {
    /// Reads the replies to [`observation`] from the server that was reached at `registered`.
    ///
    /// # Errors
    ///
    /// The server's own error, if it does not let us read what is needed.
    pub fn parse(registered: &Endpoint, replies: &[Reply]) -> Result<Self, ServerError> {
        let (sections, rest) = replies.split_at(SECTIONS.len());
        let (settings, rest) = rest.split_at(SETTINGS.len());
        let [server, replication, keyspace, memory, persistence] = sections else {
            unreachable!("one reply for each section")
        };
        let info = |reply: &Reply| reply.clone().map(|value| Info::parse(&text(&value)));
        let (server, replication, persistence) = (info(server)?, info(replication)?, info(persistence)?);
        let memory = info(memory)?;
        let data = Data::parse(&info(keyspace)?, &memory);
        let Some(replication) = Replication::parse(&replication) else {
            let detail = "shows no replication role".to_owned();
            return Err(ServerError { code: "INFO".to_owned(), detail });
        };
        let Replication { role, replicas, history, failing_over, .. } = replication;
        // Without the right to read the configuration, everything else still works.
        let mut settings: BTreeMap<String, String> = settings.iter().flatten().flat_map(fields).collect();
        let subscribers = rest.first().and_then(|reply| reply.as_ref().ok());
        if role == Role::Held {
            // A held server has priority 0. The priority of its later role is in the name of `join`'s
            // connection.
            settings.remove(PRIORITY);
            let holder = subscribers.and_then(clients::held_by);
            settings.extend(holder.map(|holder| (PRIORITY.to_owned(), holder.priority.to_string())));
        }
        let config = |name: &str| settings.get(name).cloned();
        let announced = Endpoint::new(
            config("replica-announce-ip")
                .filter(|ip| !ip.is_empty())
                .unwrap_or_else(|| registered.host.clone()),
            config("replica-announce-port")
                .and_then(|port| port.parse().ok())
                .filter(|&port| port != 0)
                .unwrap_or(registered.port),
        );
        let mut aliases = vec![registered.clone()];
        if announced != *registered {
            aliases.push(announced.clone());
        }
        Ok(Self {
            run_id: server.get("run_id").unwrap_or_default().to_owned(),
            version: Version::of(&server),
            cluster: server.mode() == Some("cluster"),
            loading: persistence.get("loading") == Some("1"),
            failing_over,
            role,
            replicas,
            data,
            history,
            replication_login: config("masterauth").map(|password| {
                let named = |username: &String| !username.is_empty() && username != secret::DEFAULT;
                let username = config("masteruser").filter(named);
                (!password.is_empty()).then(|| Login { username, password: Secret::new(password) })
            }),
            writes: Writes::parse(&persistence, &memory),
            watchers: subscribers.map(clients::sentinels),
            lacks: Lacks::new(),
            settings: RedisSettings(settings.into_iter().filter(|(name, _)| name != "masterauth").collect()),
            aliases,
            announced,
        })
    }

    /// Whether the address is one of this server's.
    #[must_use]
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.aliases.contains(endpoint)
    }

    /// Whether this server holds every write that `replica` holds, according to their replication histories.
    #[must_use]
    pub fn has_all_data_of(&self, replica: &RedisState) -> bool {
        if replica.data.is_empty() {
            return true;
        }
        let (ours, theirs) = (&self.history, &replica.history);
        (theirs.id == ours.id && theirs.offset <= ours.offset)
            || (theirs.id == ours.previous_id && theirs.offset < ours.previous_until)
    }
}

/// What a server holds, and loses when it becomes a replica: the master's data replaces it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    /// Keys in all databases.
    pub keys: u64,
    /// Functions (`FUNCTION LOAD`, since Redis 7.0). They are replicated and saved like keys.
    pub functions: u64,
}

impl Data {
    /// Reads the `keyspace` section, `db0:keys=1,expires=0,avg_ttl=0`, and the `memory` section,
    /// `number_of_functions:1`.
    #[must_use]
    pub fn parse(keyspace: &Info, memory: &Info) -> Self {
        let databases = keyspace.0.iter().filter(|(name, _)| name.starts_with("db"));
        let keys = databases
            .filter_map(|(_, line)| {
                line.split(',').find_map(|field| field.strip_prefix("keys="))?.parse::<u64>().ok()
            })
            .sum();
        Self { keys, functions: memory.number("number_of_functions").unwrap_or_default() }
    }

    /// Whether there is no data to lose.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether there are more keys or more functions than before.
    #[must_use]
    pub fn exceeds(self, before: Self) -> bool {
        self.keys > before.keys || self.functions > before.functions
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, functions } = *self;
        if keys > 0 || functions == 0 {
            f.write_str(&count(keys, "key"))?;
        }
        if keys > 0 && functions > 0 {
            f.write_str(" and ")?;
        }
        if functions > 0 {
            f.write_str(&count(functions, "function"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl RedisState {
    /// A fresh server with the settings of Redis 7.
    pub fn fresh(at: Endpoint, name: &str) -> Self {
        Self {
            run_id: format!("run-{name}"),
            version: Some(Version::Redis(7, 0, 15)),
            cluster: false,
            loading: false,
            failing_over: false,
            role: Role::Master,
            replicas: vec![],
            data: Data::default(),
            history: History { id: format!("history-{name}"), ..History::default() },
            replication_login: Some(None),
            settings: RedisSettings::of(&[
                (DISKLESS_DELAY, "5"),
                (DISKLESS_LOAD, "disabled"),
                ("replica-priority", "100"),
                ("tls-replication", "no"),
            ]),
            writes: Writes::default(),
            watchers: Some(vec![]),
            lacks: Lacks::new(),
            aliases: vec![at.clone()],
            announced: at,
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn info(text: &str) -> Reply {
        Ok(Value::BulkString(text.as_bytes().to_vec()))
    }

    fn config(settings: &[(&str, &str)]) -> Reply {
        let words = settings.iter().flat_map(|(name, value)| [name, value]);
        Ok(Value::Array(words.map(|word| Value::BulkString(word.as_bytes().to_vec())).collect()))
    }

    #[test]
    fn a_master_with_a_replica_is_read_whole() {
        let mut replies = vec![
            info("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:abc\r\n"),
            info(
                "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
                 slave0:ip=10.0.0.8,port=6380,state=wait_bgsave,offset=0,lag=0\r\nmaster_failover_state:no-failover\r\n\
                 master_replid:aa\r\nmaster_replid2:bb\r\nmaster_repl_offset:14\r\nsecond_repl_offset:7\r\n",
            ),
            info("# Keyspace\r\ndb0:keys=2,expires=0,avg_ttl=0\r\ndb3:keys=1,expires=1,avg_ttl=5\r\n"),
            info(
                "# Memory\r\nused_memory:9\r\nmaxmemory:8\r\nmaxmemory_policy:noeviction\r\nnumber_of_functions:2\r\n",
            ),
            info("# Persistence\r\nloading:0\r\nasync_loading:0\r\nrdb_last_bgsave_status:err\r\n"),
            config(&[
                (DISKLESS_DELAY, "5"),
                ("replica-announce-ip", "192.0.2.1"),
                ("replica-announce-port", "0"),
                ("replica-priority", "0"),
            ]),
            config(&[("masteruser", ""), ("masterauth", "s3cret")]),
        ];
        replies.extend((2..SETTINGS.len()).map(|_| config(&[])));
        replies.push(info("id=3 addr=10.0.0.9:1 name=sentinel-0123abcd-pubsub age=1 idle=0 user=default\n"));
        replies.extend((0..3).map(|_| Ok(Value::Okay)));
        let state = RedisState::parse(&Endpoint::new("10.0.0.7", 6379), &replies).unwrap();
        assert_eq!(state.role, Role::Master);
        assert_eq!(state.data, Data { keys: 3, functions: 2 });
        let replica = Replica {
            endpoint: Endpoint::new("10.0.0.8", 6380),
            online: false,
            confirmed: 0,
            silent_s: Some(0),
        };
        assert_eq!(state.replicas, [replica]);
        assert_eq!((state.settings.get(DISKLESS_DELAY), state.settings.priority()), (Some("5"), Some(0)));
        let writes = Writes { save_failed: true, append_failed: false, out_of_memory: Some((9, 8)) };
        assert_eq!(state.writes, writes);
        assert_eq!(state.watchers.as_ref().unwrap().len(), 1);
        assert_eq!(state.announced, Endpoint::new("192.0.2.1", 6379));
        assert!(state.is_at(&Endpoint::new("10.0.0.7", 6379)) && state.is_at(&state.announced));
        assert!(!state.failing_over && !state.loading && !state.cluster);
        assert_eq!(state.history.previous_until, 7);
        let login = Login { username: None, password: Secret::new("s3cret") };
        assert_eq!(state.replication_login, Some(Some(login)));
        assert!(!format!("{state:?}").contains("s3cret"));
    }

    #[test]
    fn what_only_asks_changes_nothing() {
        for command in observation() {
            assert!(!command.changes(), "{command:?}");
        }
        assert!(promote().changes() && set(DISKLESS_DELAY, "5").changes());
    }

    #[test]
    fn data_is_said_as_it_is() {
        let said = |keys, functions| Data { keys, functions }.to_string();
        let said = [said(0, 0), said(1, 0), said(0, 1), said(12, 2)];
        assert_eq!(said, ["0 keys", "1 key", "1 function", "12 keys and 2 functions"]);
    }

    #[test]
    fn a_server_that_hides_its_configuration_is_still_usable() {
        let denied = || Err(ServerError { code: "NOPERM".into(), detail: String::new() });
        let mut replies = vec![
            info("run_id:abc\r\n"),
            info("role:slave\r\nmaster_host:10.0.0.7\r\nmaster_port:6379\r\nmaster_link_status:up\r\n"),
            info(""),
            info("used_memory:1\r\n"),
            info("loading:0\r\n"),
        ];
        replies.extend((replies.len()..observation().len()).map(|_| denied()));
        let state = RedisState::parse(&Endpoint::new("10.0.0.8", 6379), &replies).unwrap();
        assert_eq!(state.role, Role::Replica { of: Endpoint::new("10.0.0.7", 6379), link_up: true });
        assert_eq!((&state.settings, &state.replication_login), (&RedisSettings::default(), &None));
        assert_eq!(state.watchers, None);
        assert_eq!(state.announced, Endpoint::new("10.0.0.8", 6379));
    }

    #[test]
    fn a_server_that_hides_its_replication_is_not() {
        let mut replies = vec![info(""), Err(ServerError { code: "NOPERM".into(), detail: "no".into() })];
        replies.extend((2..observation().len()).map(|_| info("")));
        assert_eq!(RedisState::parse(&Endpoint::new("10.0.0.8", 6379), &replies).unwrap_err().code, "NOPERM");
    }
}
