//! A server's part in replication. Only this module reads `INFO replication`.

use std::collections::HashMap;

use super::command::command;
use super::connection::Connections;
use super::endpoint::Endpoint;
use super::info::Info;
use super::reply::text;

/// The master of a held server: an address of the server's own machine (all of 127.0.0.0/8 is, RFC 1122)
/// where no server listens. So this address distinguishes a held server from a replica that has lost its
/// master.
pub const HELD_MASTER: &str = "127.26.37.9";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    pub role: Role,
    /// The replicas that are connected to the server, in any state.
    pub replicas: Vec<Replica>,
    pub history: History,
    /// How far a replica has applied its master's stream, in bytes. `None` before its first synchronisation.
    pub applied: Option<i64>,
    /// The first byte of the stream that a replica may still ask for.
    pub backlog_from: Option<i64>,
    /// How many replicas are close enough for `min-replicas-to-write`, if it is set.
    pub good_replicas: Option<u64>,
    /// Whether `FAILOVER` is in progress on the server.
    pub failing_over: bool,
    /// The progress of the first synchronisation, on a replica whose link is not up.
    pub transfer: Transfer,
    /// Whether the server is receiving its master's data set.
    pub is_synchronising: bool,
    /// Whether no link to a master has gone down since the server started: the link is up, or none ever was.
    pub link_never_lost: bool,
    /// A replica's `replica-priority`.
    pub priority: Option<u32>,
    /// How many seconds ago a replica last heard from its master. `None` if the link is down.
    pub heard_s: Option<u64>,
}

/// What part a server plays in replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Master,
    /// The server follows another server.
    Replica {
        of: Endpoint,
        /// Whether the link is up and the first synchronisation done.
        link_up: bool,
    },
    /// A replica of no server. `join` starts a server held if it can't know the server's role yet. A held
    /// server takes no writes. No replica can synchronise from it (`NOMASTERLINK`), so it can't empty a
    /// replica either.
    Held,
}

/// A replica as its master sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub endpoint: Endpoint,
    /// Whether the replica has all data and follows the stream.
    pub online: bool,
    /// How far the replica has confirmed the stream, which it does once a second. 0: it has confirmed nothing
    /// yet.
    pub confirmed: i64,
    /// How many seconds ago the replica last confirmed.
    pub silent_s: Option<u64>,
}

/// A server's place in a replication history. Two servers with the same id hold the same data up to the lower
/// offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// `master_replid`.
    pub id: String,
    /// `master_repl_offset`, in bytes.
    pub offset: i64,
    /// `master_replid2`: the history it was a replica in before it was promoted.
    pub previous_id: String,
    /// `second_repl_offset`: the first byte after the previous history.
    pub previous_until: i64,
}

/// The transfer of a master's data set to a replica, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfer {
    /// How much has arrived, if the master has begun to send.
    pub read: Option<u64>,
    /// The size of the whole, if the master knows it. A transfer without a file on disk has no known size.
    pub total: Option<u64>,
}

impl Replication {
    /// Asks a server for its part in replication. `None`: the node has none, so it is no Redis server.
    ///
    /// # Errors
    ///
    /// Why the server does not answer, in words.
    pub async fn ask(connections: &Connections, server: &Endpoint) -> Result<Option<Self>, String> {
        let replies = connections.send(server, &[command!("INFO", "replication")]).await;
        let reply = replies.map_err(|error| error.to_string())?.into_iter().next();
        let info = reply.expect("one reply for each command").map_err(|error| error.to_string())?;
        Ok(Self::parse(&Info::parse(&text(&info))))
    }

    /// `None`: the node has no part in replication, so it is no Redis server.
    pub fn parse(info: &Info) -> Option<Self> {
        let role = match info.get("role")? {
            "slave" if info.get("master_host") == Some(HELD_MASTER) => Role::Held,
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
            // Absent while a link is up, and -1 until the first link goes down.
            link_never_lost: info
                .number::<i64>("master_link_down_since_seconds")
                .is_some_and(|since| since < 0),
            priority: info.number("slave_priority"),
            // -1 if the link is down.
            heard_s: info.number("master_last_io_seconds_ago"),
        })
    }

    /// How far the server's data goes in its history, in bytes. `None`: a replica that has no place in a
    /// stream, or that is about to get another data set.
    pub fn place(&self) -> Option<i64> {
        match self.role {
            _ if self.is_synchronising => None,
            Role::Replica { .. } => self.applied.filter(|_| !self.never_synchronised()),
            Role::Master | Role::Held => Some(self.history.offset),
        }
    }

    /// Whether this is a replica that has never had a place in a stream: `INFO` contains 1 in that case.
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

/// Before the transfer begins, or if its size is unknown, these fields are missing, 0 or -1.
fn transfer(info: &Info) -> Transfer {
    let number = |name: &str| info.number::<i64>(name).and_then(|number| u64::try_from(number).ok());
    let total = number("master_sync_total_bytes").filter(|&total| total > 0);
    let read = match (total, number("master_sync_left_bytes")) {
        (Some(total), Some(left)) => Some(total.saturating_sub(left)),
        _ => number("master_sync_read_bytes").filter(|&read| read > 0),
    };
    Transfer { read, total }
}
