//! What the runner asks a Sentinel, and how it reads the answers.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Value;

use super::command::{Command, command};
use super::endpoint::Endpoint;
use super::info::Info;
use super::reply::{Reply, ServerError, config_value, fields, text};
use super::version::Version;

/// The commands that observe a Sentinel and what it knows of the group: one round trip.
#[must_use]
pub fn observation(group: &str) -> Vec<Command> {
    vec![
        // All sections: before Redis 7, a Sentinel answers one or all.
        command!("INFO"),
        command!("SENTINEL", "MYID"),
        command!("SENTINEL", "MASTER", group),
        command!("SENTINEL", "SENTINELS", group),
        command!("SENTINEL", "REPLICAS", group),
        command!("SENTINEL", "CONFIG", "GET", "announce-ip"),
        command!("SENTINEL", "CONFIG", "GET", "announce-port"),
        command!("SENTINEL", "CONFIG", "GET", BY_NAME[0]),
        command!("SENTINEL", "CONFIG", "GET", BY_NAME[1]),
        command!("SENTINEL", "CONFIG", "GET", "sentinel-user"),
    ]
}

/// The first makes a Sentinel accept host names. The second makes it keep host names and announce them to
/// other nodes (6.2 and later).
pub const BY_NAME: [&str; 2] = ["resolve-hostnames", "announce-hostnames"];

/// The command by which a Sentinel asks another Sentinel for its vote. With `*` instead of an id, the
/// Sentinel answers whether the master is down for it, and gives no vote (`sentinelCommand` in `sentinel.c`).
pub fn ask_for_vote(master: &Endpoint) -> Command {
    command!("SENTINEL", "IS-MASTER-DOWN-BY-ADDR", master.host, master.port, 0, "*")
}

/// The address in the reply to `SENTINEL GET-MASTER-ADDR-BY-NAME`. `None` if the Sentinel monitors no such
/// master.
pub fn named_address(reply: &Value) -> Option<Endpoint> {
    match reply {
        Value::Array(words) if words.len() == 2 => {
            Some(Endpoint::new(text(&words[0]), text(&words[1]).parse().ok()?))
        }
        _ => None,
    }
}

/// A master that a Sentinel monitors, according to the Sentinel's `INFO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitoredMaster {
    /// The group.
    pub name: String,
    pub endpoint: Endpoint,
    /// `ok`, `sdown` or `odown`.
    pub status: String,
    /// How many replicas the Sentinel knows.
    pub replicas: u64,
    /// How many Sentinels the Sentinel knows, itself included.
    pub sentinels: u64,
}

/// Reads lines like `master0:name=mymaster,status=ok,address=10.0.0.7:6379,slaves=1,sentinels=3` of `INFO
/// sentinel`. (An IPv6 address has no brackets there.)
pub fn monitored_masters(info: &Info) -> Vec<MonitoredMaster> {
    let one = |index| {
        let line = info.get(&format!("master{index}"))?;
        let fields: BTreeMap<&str, &str> =
            line.split(',').filter_map(|field| field.split_once('=')).collect();
        let (host, port) = fields.get("address")?.rsplit_once(':')?;
        let number = |name| fields.get(name).and_then(|number| number.parse().ok()).unwrap_or_default();
        Some(MonitoredMaster {
            name: (*fields.get("name")?).to_owned(),
            endpoint: Endpoint::new(host, port.parse().ok()?),
            status: fields.get("status").copied().unwrap_or_default().to_owned(),
            replicas: number("slaves"),
            sentinels: number("sentinels"),
        })
    };
    (0..).map_while(one).collect()
}

/// The state of a Sentinel at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelState {
    /// `SENTINEL MYID`: the id that is kept in the Sentinel's configuration file. The other Sentinels know
    /// the Sentinel by it.
    pub my_id: String,
    /// A fresh id for every start of the process.
    pub run_id: String,
    /// The address that the Sentinel tells other Sentinels: the announced address, or else the registered
    /// address.
    pub announced: Endpoint,
    /// Whether the Sentinel accepts host names instead of addresses (6.2 and later).
    pub resolves_hostnames: bool,
    /// Whether the Sentinel keeps host names and announces them to other nodes. Otherwise it keeps the
    /// addresses to which they resolve at that moment.
    pub announces_hostnames: bool,
    /// The ACL user as which the Sentinel logs in to other Sentinels, if one is set and can be read.
    pub sentinel_user: Option<String>,
    pub version: Option<Version>,
    /// What the Sentinel knows of the group, if it monitors the group.
    pub monitored: Option<Monitored>,
    /// The masters that the Sentinel monitors, of all groups.
    pub masters: Vec<MonitoredMaster>,
}

/// What a Sentinel knows of a master that it monitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitored {
    pub master: NamedMaster,
    /// The other Sentinels that the Sentinel knows, by id.
    pub peers: BTreeMap<String, Peer>,
    /// The servers that the Sentinel knows as replicas.
    pub replicas: Vec<Peer>,
}

/// The master as a Sentinel sees it. Only this type reads `SENTINEL MASTER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedMaster {
    /// The address that the Sentinel reports.
    pub endpoint: Endpoint,
    /// All fields of the reply.
    pub fields: BTreeMap<String, String>,
}

/// Another node, as a Sentinel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's address, according to the Sentinel.
    pub endpoint: Endpoint,
    /// The node's id. A Sentinel's is the id in its hellos. A Redis server's is read from its `INFO`, and
    /// empty before that.
    pub id: String,
    /// The kind, `sentinel` or `slave`, and what is wrong with the node.
    pub flags: String,
    /// A replica's `replica-priority`. A replica with 0, as a held server has, is never promoted.
    pub priority: Option<u32>,
    /// For how many milliseconds a replica has been without its master, according to the replica.
    pub link_down_ms: u64,
    /// For how many milliseconds the Sentinel has found the node down. 0: it is not down.
    pub down_ms: u64,
    /// A replica's offset in its master's stream when the Sentinel last read the replica's `INFO`. 0 before
    /// the first time.
    pub offset: i64,
    /// For how many milliseconds a `PING` has had no answer. 0: no answer is awaited. The time starts when
    /// the Sentinel learns of the node.
    pub ping_unanswered_ms: u64,
}

impl Monitored {
    /// Whether this Sentinel could ever promote that replica. The replica needs a priority, and must not have
    /// been without its master for longer than ten times `down-after-milliseconds` when the master went down
    /// (`sentinelSelectSlave` in Redis 7.0's and Valkey 9.1's `sentinel.c`).
    pub fn may_promote(&self, replica: &Peer) -> bool {
        let limit = self.master.number("s-down-time") + 10 * self.master.number("down-after-milliseconds");
        replica.priority != Some(0) && replica.link_down_ms <= limit
    }

    /// Whether enough Sentinels are up for a failover, as far as this Sentinel knows: the quorum, and a
    /// majority of all.
    pub fn has_quorum(&self) -> bool {
        let all = 1 + self.peers.len();
        let there = all - self.peers.values().filter(|peer| peer.is_down()).count();
        there as u64 >= self.master.quorum() && there > all / 2
    }
}

impl Peer {
    /// Whether the Sentinel has had no answer from the node for `down-after-milliseconds`. A Sentinel that
    /// has just started and is not connected yet sets only `disconnected`.
    pub fn is_down(&self) -> bool {
        self.flags.split(',').any(|flag| flag == "s_down")
    }

    /// Whether the Sentinel has lost the node, for a while or permanently.
    pub fn is_gone(&self) -> bool {
        self.flags.split(',').any(|flag| matches!(flag, "s_down" | "disconnected"))
    }

    /// Whether the Sentinel has reached the node at the address that it knows, and has got an answer. The
    /// flags alone are right until a connection is made, and again after `down-after-milliseconds`. In
    /// between, an unanswered `PING` shows that the node does not answer.
    pub fn was_reached(&self) -> bool {
        !self.is_gone() && self.ping_unanswered_ms == 0
    }
}

impl NamedMaster {
    pub fn parse(reply: &Value) -> Self {
        let fields = fields(reply);
        let endpoint = Endpoint::new(
            fields.get("ip").map(String::as_str).unwrap_or_default(),
            fields.get("port").and_then(|port| port.parse().ok()).unwrap_or_default(),
        );
        Self { endpoint, fields }
    }

    /// A field as text. Empty if it is missing.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A field as a number. 0 if it is missing.
    fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap_or_default()
    }

    /// How many replicas the Sentinel knows, whether up or down.
    pub fn replicas(&self) -> u64 {
        self.number("num-slaves")
    }

    /// How many other Sentinels the Sentinel knows, whether up or down.
    pub fn other_sentinels(&self) -> u64 {
        self.number("num-other-sentinels")
    }

    /// How many Sentinels have to agree that the master is down.
    pub fn quorum(&self) -> u64 {
        self.number("quorum")
    }

    /// `down-after-milliseconds`.
    pub fn down_after(&self) -> Duration {
        Duration::from_millis(self.number("down-after-milliseconds"))
    }

    /// How often the master has changed, as far as this Sentinel knows. 0: never.
    pub fn config_epoch(&self) -> u64 {
        self.number("config-epoch")
    }

    /// The flags, including `master`.
    pub fn flags(&self) -> &str {
        self.field("flags")
    }

    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags().split(',').any(|set| set == flag)
    }

    /// Whether this Sentinel has reached the master and has got an answer: its `INFO` was read, and no `PING`
    /// is unanswered since the Sentinel has known the node as the master. For up to ten seconds after a
    /// failover, the `INFO` is the one that was read when the node was a replica: the master's replicas are
    /// known by then, but its `runid` is not (`sentinelResetMasterAndChangeAddress` in `sentinel.c`).
    pub fn was_reached(&self) -> bool {
        (!self.field("runid").is_empty() || self.was_read()) && self.number("last-ping-sent") == 0
    }

    /// Whether this Sentinel has ever read the master's `INFO`. `info-refresh` is the time since then in
    /// milliseconds. Before the first time it is 0, or before Redis 7 the time since 1970.
    pub fn was_read(&self) -> bool {
        self.replicas() > 0 || (1..1_000_000_000_000).contains(&self.number("info-refresh"))
    }
}

impl SentinelState {
    /// Reads the replies to [`observation`] from the Sentinel that was reached at `registered`.
    ///
    /// # Errors
    ///
    /// The Sentinel's own error, if it does not let us read what is needed.
    pub fn parse(registered: &Endpoint, replies: &[Reply]) -> Result<Self, ServerError> {
        let [
            info,
            my_id,
            master,
            sentinels,
            replicas,
            announce_ip,
            announce_port,
            resolve_hostnames,
            announce_hostnames,
            sentinel_user,
        ] = replies
        else {
            unreachable!("one reply for each command of `observation`")
        };
        let info = Info::parse(&text(info.as_ref().map_err(Clone::clone)?));
        // `SENTINEL CONFIG` exists since 6.2.
        let config =
            |reply: &Reply| reply.as_ref().ok().and_then(config_value).filter(|value| !value.is_empty());
        let monitored = match master {
            Ok(fields) => {
                let (sentinels, replicas) =
                    (sentinels.as_ref().map_err(Clone::clone)?, replicas.as_ref().map_err(Clone::clone)?);
                Some(Monitored {
                    master: NamedMaster::parse(fields),
                    peers: peers(sentinels).into_iter().map(|peer| (peer.id.clone(), peer)).collect(),
                    replicas: peers(replicas),
                })
            }
            Err(error) if error.detail.starts_with("No such master") => None,
            Err(error) => return Err(error.clone()),
        };
        Ok(Self {
            my_id: text(my_id.as_ref().map_err(Clone::clone)?),
            run_id: info.get("run_id").unwrap_or_default().to_owned(),
            announced: Endpoint::new(
                config(announce_ip).unwrap_or_else(|| registered.host.clone()),
                config(announce_port)
                    .and_then(|port| port.parse().ok())
                    .filter(|&port| port != 0)
                    .unwrap_or(registered.port),
            ),
            resolves_hostnames: config(resolve_hostnames).as_deref() == Some("yes"),
            announces_hostnames: config(announce_hostnames).as_deref() == Some("yes"),
            sentinel_user: config(sentinel_user),
            version: Version::of(&info),
            monitored,
            masters: monitored_masters(&info),
        })
    }
}

/// The nodes in the reply to `SENTINEL SENTINELS` or `SENTINEL REPLICAS`.
pub fn peers(list: &Value) -> Vec<Peer> {
    let Value::Array(entries) = list else { return Vec::new() };
    let peer = |fields: BTreeMap<String, String>| {
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        Some(Peer {
            endpoint: Endpoint::new(fields.get("ip")?, fields.get("port")?.parse().ok()?),
            id: field("runid"),
            flags: field("flags"),
            priority: field("slave-priority").parse().ok(),
            link_down_ms: field("master-link-down-time").parse().unwrap_or_default(),
            down_ms: field("s-down-time").parse().unwrap_or_default(),
            offset: field("slave-repl-offset").parse().unwrap_or_default(),
            ping_unanswered_ms: field("last-ping-sent").parse().unwrap_or_default(),
        })
    };
    entries.iter().map(fields).filter_map(peer).collect()
}

#[cfg(test)]
impl SentinelState {
    /// A fresh Sentinel of Redis 7.
    pub fn fresh(at: Endpoint, id: &str, run_id: &str) -> Self {
        Self {
            my_id: id.to_owned(),
            run_id: run_id.to_owned(),
            announced: at,
            resolves_hostnames: false,
            announces_hostnames: false,
            sentinel_user: None,
            version: Some(Version::Redis(7, 0, 15)),
            monitored: None,
            masters: Vec::new(),
        }
    }
}

#[cfg(test)]
impl Peer {
    /// A node that was reached, with these flags.
    pub fn reached(at: Endpoint, id: &str, flags: &str) -> Self {
        Self {
            endpoint: at,
            id: id.to_owned(),
            flags: flags.to_owned(),
            priority: None,
            link_down_ms: 0,
            down_ms: 0,
            offset: 0,
            ping_unanswered_ms: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_asks_changes_nothing() {
        for command in observation("mymaster") {
            assert!(!command.changes(), "{command:?}");
        }
        assert!(command!("SENTINEL", "SET", "m", "quorum", 2).changes());
    }

    fn list(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|word| Value::BulkString(word.as_bytes().to_vec())).collect())
    }

    fn replies(master: Reply, peers: Reply) -> Vec<Reply> {
        vec![
            Ok(Value::BulkString(b"redis_mode:sentinel\r\nrun_id:abc\r\nredis_version:7.0.15\r\n".to_vec())),
            Ok(Value::BulkString(b"0123".to_vec())),
            master,
            peers,
            Ok(Value::Array(vec![list(&["ip", "10.0.0.9", "port", "6379"])])),
            Ok(list(&["announce-ip", ""])),
            Ok(list(&["announce-port", "0"])),
            Ok(list(&["resolve-hostnames", "no"])),
            Ok(list(&["announce-hostnames", "no"])),
            Ok(list(&["sentinel-user", ""])),
        ]
    }

    #[test]
    fn a_sentinel_that_knows_no_master_of_that_name_is_new() {
        let unknown =
            || Err(ServerError { code: "ERR".into(), detail: "No such master with that name".into() });
        let here = Endpoint::new("10.0.0.7", 26379);
        let state = SentinelState::parse(&here, &replies(unknown(), unknown())).unwrap();
        assert_eq!((state.monitored, state.announced, state.resolves_hostnames), (None, here, false));
    }

    #[test]
    fn what_it_monitors_is_read_whole() {
        let master = list(&[
            "name",
            "m",
            "ip",
            "10.0.0.7",
            "port",
            "6379",
            "flags",
            "s_down,master",
            "config-epoch",
            "3",
        ]);
        let peer = list(&[
            "name",
            "x",
            "ip",
            "10.0.0.8",
            "port",
            "26379",
            "runid",
            "beef",
            "flags",
            "sentinel,disconnected",
        ]);
        let replies = replies(Ok(master), Ok(Value::Array(vec![peer])));
        let monitored = SentinelState::parse(&Endpoint::new("h", 1), &replies).unwrap().monitored.unwrap();
        assert_eq!(monitored.master.endpoint, Endpoint::new("10.0.0.7", 6379));
        assert_eq!(monitored.replicas, [Peer::reached(Endpoint::new("10.0.0.9", 6379), "", "")]);
        let master = &monitored.master;
        assert_eq!(master.config_epoch(), 3);
        assert!(master.has_flag("s_down") && master.has_flag("master") && !master.has_flag("o_down"));
        let peer = Peer::reached(Endpoint::new("10.0.0.8", 26379), "beef", "sentinel,disconnected");
        assert!(peer.is_gone() && !peer.was_reached());
        let flags = |flags: &str| Peer::reached(Endpoint::new("10.0.0.8", 6379), "", flags);
        let starting = flags("slave,disconnected");
        assert!(starting.is_gone() && !starting.is_down() && flags("s_down,slave,disconnected").is_down());
        assert_eq!(monitored.peers, BTreeMap::from([("beef".into(), peer)]));
    }
}
