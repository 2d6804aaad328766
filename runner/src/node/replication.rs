//! A server's part in replication, read from `INFO replication` in one place.

use std::collections::HashMap;

use super::command::command;
use super::connection::Connections;
use super::endpoint::Endpoint;
use super::info::Info;
use super::reply::text;

/// The master that a held server is given: an address of its own machine (all of 127.0.0.0/8 is, RFC 1122) where no server listens, so
/// that everybody can tell it from a replica that has lost its master.
pub const NOBODY: &str = "127.26.37.9";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    pub role: Role,
    /// The replicas that are connected to it, in whatever state.
    pub replicas: Vec<Replica>,
    pub history: History,
    /// How far a replica has applied its master's stream, in bytes; before its first synchronisation it has none.
    pub applied: Option<i64>,
    /// The first byte of the stream that a replica may still ask for.
    pub backlog_from: Option<i64>,
    /// How many replicas are near enough for `min-replicas-to-write`, where that is set.
    pub good_replicas: Option<u64>,
    /// Whether `FAILOVER` is under way on it.
    pub failing_over: bool,
    /// How far the first synchronisation is, on a replica whose link is not up.
    pub transfer: Transfer,
    /// Whether its master's data set is on its way to it.
    pub is_synchronising: bool,
    /// Whether no link to a master has gone down since it started: it is up, or it never was.
    pub link_never_lost: bool,
    /// A replica's `replica-priority`.
    pub priority: Option<u32>,
    /// How many seconds ago a replica has last heard of its master; none where the link is down.
    pub heard_s: Option<u64>,
}

/// What part a server plays in replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Master,
    /// It follows another.
    Replica {
        of: Endpoint,
        /// Whether the link is up and the first synchronisation done.
        link_up: bool,
    },
    /// A replica of nobody: `join` starts a server so where it can't know yet what it is. It takes no writes, and no replica
    /// can synchronise from it (`NOMASTERLINK`), so that it can't empty one either.
    Held,
}

/// A replica as its master sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub endpoint: Endpoint,
    /// Whether it has all data and follows the stream.
    pub online: bool,
    /// How far it has confirmed the stream, which it does once a second; 0: it has confirmed nothing yet.
    pub confirmed: i64,
    /// How many seconds ago it did so last.
    pub silent_s: Option<u64>,
}

/// A server's place in a replication history. Two servers with the same id hold the same data up to the lower offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// `master_replid`.
    pub id: String,
    /// `master_repl_offset`, in bytes.
    pub offset: i64,
    /// `master_replid2`: the history it was a replica in before it was promoted.
    pub previous_id: String,
    /// `second_repl_offset`: the first byte that is not of the previous history.
    pub previous_until: i64,
}

/// A master's data set on its way to a replica, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfer {
    /// What has arrived, where the master has begun to send.
    pub read: Option<u64>,
    /// What there is in all, where the master knows: what is sent without a file on disk has no size.
    pub total: Option<u64>,
}

impl Replication {
    /// Asks a server for it. `None`: what answers has no part in replication; it is no Redis server.
    ///
    /// # Errors
    ///
    /// Why it does not say, in words.
    pub async fn ask(connections: &Connections, server: &Endpoint) -> Result<Option<Self>, String> {
        let replies = connections.send(server, &[command!("INFO", "replication")]).await;
        let reply = replies.map_err(|error| error.to_string())?.into_iter().next();
        let info = reply.expect("one reply for each command").map_err(|error| error.to_string())?;
        Ok(Self::parse(&Info::parse(&text(&info))))
    }

    /// `None`: what answers has no part in replication; it is no Redis server.
    pub fn parse(info: &Info) -> Option<Self> {
        let role = match info.get("role")? {
            "slave" if info.get("master_host") == Some(NOBODY) => Role::Held,
            "slave" => Role::Replica {
                of: Endpoint::new(
                    info.get("master_host").unwrap_or_default(),
                    info.number("master_port").unwrap_or_default(),
                ),
                link_up: info.get("master_link_status") == Some("up"),
            },
            "master" => Role::Master,
            _ => return None,
        };
        Some(Self {
            role,
            replicas: replicas(info),
            history: History {
                id: info.get("master_replid").unwrap_or_default().to_owned(),
                offset: info.number("master_repl_offset").unwrap_or_default(),
                previous_id: info.get("master_replid2").unwrap_or_default().to_owned(),
                previous_until: info.number("second_repl_offset").unwrap_or(-1),
            },
            applied: info.number("slave_repl_offset"),
            backlog_from: info.number("repl_backlog_first_byte_offset"),
            good_replicas: info.number("min_slaves_good_slaves"),
            failing_over: info.get("master_failover_state").is_some_and(|state| state != "no-failover"),
            transfer: transfer(info),
            is_synchronising: info.get("master_sync_in_progress") == Some("1"),
            // Absent while a link is up, and -1 until the first one goes down.
            link_never_lost: info
                .number::<i64>("master_link_down_since_seconds")
                .is_some_and(|since| since < 0),
            priority: info.number("slave_priority"),
            // -1 where the link is down.
            heard_s: info.number("master_last_io_seconds_ago"),
        })
    }

    /// How far what the server holds goes in its history, in bytes. `None`: it is a replica that has no place in a stream, or
    /// is about to get another data set.
    pub fn place(&self) -> Option<i64> {
        match self.role {
            _ if self.is_synchronising => None,
            Role::Replica { .. } => self.applied.filter(|_| !self.never_synchronised()),
            Role::Master | Role::Held => Some(self.history.offset),
        }
    }

    /// Whether it is a replica that has never had a place in a stream: `INFO` says 1 then.
    pub fn never_synchronised(&self) -> bool {
        self.applied.is_some_and(|applied| applied <= 1)
    }

    /// How many of the connected replicas follow the stream.
    pub fn online(&self) -> usize {
        online(&self.replicas)
    }
}

/// How many of these replicas follow the stream.
pub fn online(replicas: &[Replica]) -> usize {
    replicas.iter().filter(|replica| replica.online).count()
}

/// `slave0:ip=10.0.0.8,port=6379,state=online,offset=14,lag=1`, and so on.
fn replicas(info: &Info) -> Vec<Replica> {
    (0..)
        .map_while(|index| info.get(&format!("slave{index}")))
        .filter_map(|line| {
            let fields: HashMap<_, _> = line.split(',').filter_map(|field| field.split_once('=')).collect();
            Some(Replica {
                endpoint: Endpoint::new(*fields.get("ip")?, fields.get("port")?.parse().ok()?),
                online: fields.get("state") == Some(&"online"),
                confirmed: fields.get("offset").and_then(|offset| offset.parse().ok()).unwrap_or_default(),
                silent_s: fields.get("lag").and_then(|lag| lag.parse().ok()),
            })
        })
        .collect()
}

/// Before the transfer begins, and where its size is not known, these are missing, 0 or -1.
fn transfer(info: &Info) -> Transfer {
    let number = |name: &str| info.number::<i64>(name).and_then(|number| u64::try_from(number).ok());
    let total = number("master_sync_total_bytes").filter(|&total| total > 0);
    let read = match (total, number("master_sync_left_bytes")) {
        (Some(total), Some(left)) => Some(total.saturating_sub(left)),
        _ => number("master_sync_read_bytes").filter(|&read| read > 0),
    };
    Transfer { read, total }
}
