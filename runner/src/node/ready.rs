//! Whether one node is ready, by that node's own `INFO` alone. The check is cheap: one round trip.

use super::command::{Command, command};
use super::info::Info;
use super::replication::{Replication, Role};
use super::reply::{Reply, text};
use super::sentinel::{MonitoredMaster, monitored_masters};

/// What a Redis server reports about itself.
#[derive(Debug, Clone)]
pub struct ServerNow {
    /// A fresh id for every start of the process.
    pub run_id: String,
    pub replication: Replication,
    /// Whether the server is loading its data set from disk. Until that is done, it answers nearly no other
    /// command.
    pub is_loading: bool,
}

impl ServerNow {
    /// The commands to send: one round trip, a few microseconds of the server's time.
    pub fn question() -> Vec<Command> {
        ["replication", "persistence", "server"].map(|section| command!("INFO", section)).into()
    }

    /// Reads the replies to [`question`](Self::question).
    ///
    /// # Errors
    ///
    /// Why the replies can't be read, in words.
    pub fn parse(replies: &[Reply]) -> Result<Self, String> {
        let [replication, persistence, server] = infos(replies)?;
        let Some(replication) = Replication::parse(&replication) else {
            return Err("is not a Redis server".into());
        };
        let run_id = server.get("run_id").unwrap_or_default().to_owned();
        Ok(Self { run_id, replication, is_loading: persistence.get("loading") == Some("1") })
    }

    /// Whether the server serves reads, as a master or as a replica whose link is up.
    ///
    /// # Errors
    ///
    /// Why the server is not ready, in words.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_loading {
            return Err("is loading its data".into());
        }
        match &self.replication.role {
            Role::Master | Role::Replica { link_up: true, .. } => Ok(()),
            Role::Replica { of, .. } if self.replication.is_synchronising => {
                Err(format!("is synchronising from {of}"))
            }
            Role::Replica { of, .. } => Err(format!("has no link to its master {of}")),
            Role::Held => Err("is held: its role is not known yet".into()),
        }
    }
}

/// What a Sentinel reports about itself.
#[derive(Debug, Clone)]
pub struct SentinelNow {
    pub masters: Vec<MonitoredMaster>,
}

impl SentinelNow {
    /// The commands to send.
    pub fn question() -> Vec<Command> {
        ["server", "sentinel"].map(|section| command!("INFO", section)).into()
    }

    /// Reads the replies to [`question`](Self::question).
    ///
    /// # Errors
    ///
    /// Why the replies can't be read, in words.
    pub fn parse(replies: &[Reply]) -> Result<Self, String> {
        let [server, sentinel] = infos(replies)?;
        if server.mode() != Some("sentinel") {
            return Err("is not a Sentinel".into());
        }
        Ok(Self { masters: monitored_masters(&sentinel) })
    }

    /// Whether the Sentinel monitors a master.
    ///
    /// # Errors
    ///
    /// That it monitors no master, in words.
    pub fn ready(&self) -> Result<(), String> {
        if self.masters.is_empty() { Err("monitors no master".into()) } else { Ok(()) }
    }
}

fn infos<const N: usize>(replies: &[Reply]) -> Result<[Info; N], String> {
    let mut infos = Vec::with_capacity(N);
    for reply in replies {
        match reply {
            Ok(value) => infos.push(Info::parse(&text(value))),
            // A server that is loading answers nearly every command with this error.
            Err(error) if error.code == "LOADING" => return Err("is loading its data".into()),
            Err(error) => return Err(error.to_string()),
        }
    }
    infos.try_into().map_err(|_| "gave an unexpected answer".to_owned())
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn reply(text: &str) -> Reply {
        Ok(Value::BulkString(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_server_is_ready_as_a_master_or_as_a_replica_that_is_linked() {
        let ready = |replication: &str, persistence: &str| {
            ServerNow::parse(&[reply(replication), reply(persistence), reply("run_id:abc\r\n")])
                .and_then(|now| now.ready())
        };
        let replica = "role:slave\r\nmaster_host:10.0.0.7\r\nmaster_port:6379\r\n";
        assert_eq!(ready("role:master\r\n", "loading:0\r\n"), Ok(()));
        assert_eq!(ready(&format!("{replica}master_link_status:up\r\n"), "loading:0\r\n"), Ok(()));
        let why = |replication: &str, persistence: &str| ready(replication, persistence).unwrap_err();
        assert_eq!(why("role:master\r\n", "loading:1\r\n"), "is loading its data");
        assert_eq!(
            why(&format!("{replica}master_link_status:down\r\n"), ""),
            "has no link to its master 10.0.0.7:6379"
        );
        assert_eq!(
            why(&format!("{replica}master_link_status:down\r\nmaster_sync_in_progress:1\r\n"), ""),
            "is synchronising from 10.0.0.7:6379"
        );
        assert!(why("role:slave\r\nmaster_host:127.26.37.9\r\nmaster_port:1\r\n", "").contains("held"));
        assert_eq!(why("role:sentinel\r\n", ""), "is not a Redis server");
    }

    #[test]
    fn a_sentinel_is_ready_once_it_monitors() {
        let ready = |mode: &str, sentinel: &str| {
            SentinelNow::parse(&[reply(&format!("redis_mode:{mode}\r\n")), reply(sentinel)])
                .and_then(|now| now.ready())
        };
        let one = "sentinel_masters:1\r\nmaster0:name=mymaster,status=ok,address=10.0.0.7:6379,slaves=1,sentinels=3\r\n";
        assert_eq!(ready("sentinel", one), Ok(()));
        assert_eq!(ready("sentinel", "sentinel_masters:0\r\n").unwrap_err(), "monitors no master");
        assert_eq!(ready("standalone", one).unwrap_err(), "is not a Sentinel");
    }
}
