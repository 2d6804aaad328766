//! What the runner asks of a Redis server, and how it reads the answers.

use std::fmt;

use super::command::{Command, command};
use super::endpoint::Endpoint;
use super::info::Info;
use super::replication::{History, Replica, Replication, Role};
use super::reply::{Reply, ServerError, config_value, text};
use super::secret::{Login, Secret};
use crate::words::count;

/// What is asked of a server to know it: one round trip.
///
/// `INFO` takes several sections only since Redis 7.0, so each is asked for by itself.
#[must_use]
pub fn observation() -> Vec<Command> {
    vec![
        command!("INFO", "server"),
        command!("INFO", "replication"),
        command!("INFO", "keyspace"),
        command!("INFO", "memory"),
        command!("INFO", "persistence"),
        command!("CONFIG", "GET", DISKLESS_DELAY),
        command!("CONFIG", "GET", "replica-announce-ip"),
        command!("CONFIG", "GET", "replica-announce-port"),
        command!("CONFIG", "GET", "masteruser"),
        command!("CONFIG", "GET", "masterauth"),
        command!("CONFIG", "GET", "tls-replication"),
    ]
}

/// The setting that makes a master wait for more replicas before it sends them its data (on by default since 7.0).
pub const DISKLESS_DELAY: &str = "repl-diskless-sync-delay";

pub fn promote() -> Command {
    command!("REPLICAOF", "NO", "ONE")
}

/// `CONFIG SET repl-diskless-sync-delay`, in seconds.
pub fn set_diskless_delay(seconds: u32) -> Command {
    command!("CONFIG", "SET", DISKLESS_DELAY, seconds)
}

/// What a server is, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisState {
    /// A fresh id for every start of the process.
    pub run_id: String,
    /// Whether it runs as a Redis Cluster node.
    pub cluster: bool,
    /// Whether it is still loading its data set.
    pub loading: bool,
    /// Whether `FAILOVER` is under way on it.
    pub failing_over: bool,
    pub role: Role,
    /// The replicas that are connected to it, in whatever state.
    pub replicas: Vec<Replica>,
    pub data: Data,
    pub history: History,
    /// [`DISKLESS_DELAY`], in seconds, where it can be read.
    pub diskless_delay: Option<u32>,
    /// The login that it gives its master, where that can be read; `Some(None)` is none.
    pub replication_login: Option<Option<Login>>,
    /// Whether it reaches its master by TLS, where it knows TLS at all.
    pub tls_replication: Option<bool>,
    /// The addresses it goes by: as registered, as resolved, and as it announces itself.
    pub aliases: Vec<Endpoint>,
    /// The address that the others are to use: the announced one, else the registered one.
    pub announced: Endpoint,
}

impl RedisState {
    /// Reads the replies to [`observation`] from the server that was reached at `registered`.
    ///
    /// # Errors
    ///
    /// The server's own error where it does not let us read what is needed.
    pub fn parse(registered: &Endpoint, replies: &[Reply]) -> Result<Self, ServerError> {
        let [
            server,
            replication,
            keyspace,
            memory,
            persistence,
            delay,
            announce_ip,
            announce_port,
            master_user,
            master_auth,
            tls_replication,
        ] = replies
        else {
            unreachable!("one reply for each command of `observation`")
        };
        let info = |reply: &Reply| reply.clone().map(|value| Info::parse(&text(&value)));
        let (server, replication, persistence) = (info(server)?, info(replication)?, info(persistence)?);
        let Some(replication) = Replication::parse(&replication) else {
            let detail = "it has no role in replication".to_owned();
            return Err(ServerError { code: "INFO".to_owned(), detail });
        };
        let Replication { role, replicas, history, failing_over, .. } = replication;
        let data = Data::parse(&info(keyspace)?, &info(memory)?);
        // Without the right to read its configuration all else can still be done.
        let config = |reply: &Reply| reply.as_ref().ok().and_then(config_value);

        let announced = Endpoint::new(
            config(announce_ip).filter(|ip| !ip.is_empty()).unwrap_or_else(|| registered.host.clone()),
            config(announce_port)
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
            cluster: server.mode() == Some("cluster"),
            loading: persistence.get("loading") == Some("1"),
            failing_over,
            role,
            replicas,
            data,
            history,
            replication_login: config(master_auth).map(|password| {
                let username = config(master_user).filter(|username| !username.is_empty());
                (!password.is_empty()).then(|| Login { username, password: Secret::new(password) })
            }),
            tls_replication: config(tls_replication).map(|value| value == "yes"),
            diskless_delay: config(delay).and_then(|seconds| seconds.parse().ok()),
            aliases,
            announced,
        })
    }

    /// Whether this server goes by that address.
    #[must_use]
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.aliases.contains(endpoint)
    }

    /// Whether every write that `replica` holds is also held here, as far as their histories tell.
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

/// What a server holds that a replica loses to its master's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    /// Keys, in all databases.
    pub keys: u64,
    /// Functions (`FUNCTION LOAD`, since Redis 7.0), which are replicated and saved as keys are.
    pub functions: u64,
}

impl Data {
    /// Reads the `keyspace` section, `db0:keys=1,expires=0,avg_ttl=0`, and the `memory` section, `number_of_functions:1`.
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

    /// Whether there is nothing to lose.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether there is more of anything than there was.
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
mod tests {
    use redis::Value;

    use super::*;

    fn info(text: &str) -> Reply {
        Ok(Value::BulkString(text.as_bytes().to_vec()))
    }

    fn config(name: &str, value: &str) -> Reply {
        Ok(Value::Array(vec![
            Value::BulkString(name.as_bytes().to_vec()),
            Value::BulkString(value.as_bytes().to_vec()),
        ]))
    }

    #[test]
    fn a_master_with_a_replica_is_read_whole() {
        let replies = [
            info("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:abc\r\n"),
            info(
                "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
                 slave0:ip=10.0.0.8,port=6380,state=wait_bgsave,offset=0,lag=0\r\nmaster_failover_state:no-failover\r\n\
                 master_replid:aa\r\nmaster_replid2:bb\r\nmaster_repl_offset:14\r\nsecond_repl_offset:7\r\n",
            ),
            info("# Keyspace\r\ndb0:keys=2,expires=0,avg_ttl=0\r\ndb3:keys=1,expires=1,avg_ttl=5\r\n"),
            info("# Memory\r\nused_memory:1\r\nnumber_of_functions:2\r\n"),
            info("# Persistence\r\nloading:0\r\nasync_loading:0\r\n"),
            config(DISKLESS_DELAY, "5"),
            config("replica-announce-ip", "192.0.2.1"),
            config("replica-announce-port", "0"),
            config("masteruser", ""),
            config("masterauth", "s3cret"),
            config("tls-replication", "no"),
        ];
        let state = RedisState::parse(&Endpoint::new("10.0.0.7", 6379), &replies).unwrap();
        assert_eq!(state.role, Role::Master);
        assert_eq!(state.data, Data { keys: 3, functions: 2 });
        assert_eq!(state.replicas, [Replica { endpoint: Endpoint::new("10.0.0.8", 6380), online: false }]);
        assert_eq!(state.diskless_delay, Some(5));
        assert_eq!(state.announced, Endpoint::new("192.0.2.1", 6379));
        assert!(state.is_at(&Endpoint::new("10.0.0.7", 6379)) && state.is_at(&state.announced));
        assert!(!state.failing_over && !state.loading && !state.cluster);
        assert_eq!(state.history.previous_until, 7);
        let login = Login { username: None, password: Secret::new("s3cret") };
        assert_eq!((&state.replication_login, state.tls_replication), (&Some(Some(login)), Some(false)));
        assert!(!format!("{state:?}").contains("s3cret"));
    }

    #[test]
    fn what_only_asks_changes_nothing() {
        for command in observation() {
            assert!(!command.changes(), "{command:?}");
        }
        assert!(promote().changes() && set_diskless_delay(5).changes());
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
        replies.extend((0..6).map(|_| denied()));
        let state = RedisState::parse(&Endpoint::new("10.0.0.8", 6379), &replies).unwrap();
        assert_eq!(state.role, Role::Replica { of: Endpoint::new("10.0.0.7", 6379), link_up: true });
        assert_eq!(
            (state.diskless_delay, &state.replication_login, state.tls_replication),
            (None, &None, None)
        );
        assert_eq!(state.announced, Endpoint::new("10.0.0.8", 6379));
    }

    #[test]
    fn a_server_that_hides_its_replication_is_not() {
        let mut replies = vec![info(""), Err(ServerError { code: "NOPERM".into(), detail: "no".into() })];
        replies.extend((0..9).map(|_| info("")));
        assert_eq!(RedisState::parse(&Endpoint::new("10.0.0.8", 6379), &replies).unwrap_err().code, "NOPERM");
    }
}
