//! The clients that are connected to a node (`CLIENT LIST`), and the Sentinels among them.
//!
//! A Sentinel names its connections `sentinel-` and the first 8 characters of its id, then `-cmd` or
//! `-pubsub` (`sentinelSetClientName` in `sentinel.c`). It can set the name only after it has logged in. The
//! name proves that the Sentinel has connected. It does not prove that the Sentinel is still alive: a frozen
//! Sentinel stays connected.

use redis::Value;

use super::command::{Command, command};
use super::endpoint::Endpoint;
use super::reply::text;

/// The number of characters of an id that a name contains.
const ID: usize = 8;

/// The right to read the list.
pub const RIGHT: &str = "client|list";

/// For a Redis server. Sentinels subscribe to the hello channel there. The list of subscribers is short even
/// if there are thousands of clients.
pub fn subscribers() -> Command {
    command!("CLIENT", "LIST", "TYPE", "pubsub")
}

/// For a Sentinel. Only clients subscribe to a Sentinel; other Sentinels are among its normal connections.
pub fn all() -> Command {
    command!("CLIENT", "LIST", "TYPE", "normal")
}

/// A Sentinel's connection to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelClient {
    /// The start of the Sentinel's id.
    pub id: String,
    /// The number of the connection, for `CLIENT KILL ID`.
    pub connection: u64,
    /// The address that the connection comes from.
    pub from: Endpoint,
    /// The ACL user that the Sentinel is logged in as.
    pub user: String,
    /// The age of the connection, in seconds.
    pub age: u64,
}

impl SentinelClient {
    /// Whether this is the Sentinel with that id.
    pub fn is(&self, id: &str) -> bool {
        id.get(..ID) == Some(&self.id)
    }
}

/// The Sentinels in the reply to `CLIENT LIST`.
pub fn sentinels(reply: &Value) -> Vec<SentinelClient> {
    text(reply).lines().filter_map(sentinel).collect()
}

/// The start of the name of `join`'s connection to its own server. The `replica-priority` that the server has
/// when it is not held follows, and after [`AT`] the position of its data.
const HOLDER: &str = "join-priority-";
const AT: &str = "-at-";

/// The name of `join`'s connection to its own server.
pub fn holder(priority: u32, position: Option<&str>) -> String {
    let position = position.map(|position| format!("{AT}{position}")).unwrap_or_default();
    format!("{HOLDER}{priority}{position}")
}

/// What the name of `join`'s connection to its own server contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The `replica-priority` that the server has when it is not held.
    pub priority: u32,
    /// The position of the server's data, if it is known.
    pub position: Option<String>,
}

/// What [`holder`] put into a name, by the reply to `CLIENT LIST`. If there are two, the last one is the
/// newest: the server lists its clients in the order in which they connected.
pub fn held_by(reply: &Value) -> Option<Holder> {
    let text = text(reply);
    let name = text.lines().rev().find_map(|line| field(line, "name")?.strip_prefix(HOLDER))?;
    let (priority, position) = match name.split_once(AT) {
        Some((priority, position)) => (priority, Some(position.to_owned())),
        None => (name, None),
    };
    Some(Holder { priority: priority.parse().ok()?, position })
}

/// The start of the name of a connection that lasts as long as a change of master.
const HANDOVER: &str = "handover-";

/// The name of a connection that lasts as long as this change of master.
pub fn handover(number: u32) -> String {
    format!("{HANDOVER}{number:08x}")
}

/// The addresses of other runners that are changing the master, by the reply to [`subscribers`].
pub fn other_handovers(reply: &Value, own: &str) -> Vec<String> {
    let text = text(reply);
    let others = text
        .lines()
        .filter(|line| field(line, "name").is_some_and(|name| name.starts_with(HANDOVER) && name != own));
    others.map(|line| field(line, "addr").unwrap_or_default().to_owned()).collect()
}

/// A field of a line of `CLIENT LIST`.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// One line: `id=7 addr=10.0.0.9:41022 name=sentinel-0123abcd-pubsub age=12 idle=0 … user=default …`.
fn sentinel(line: &str) -> Option<SentinelClient> {
    let field = |name: &str| field(line, name);
    let (id, link) = field("name")?.strip_prefix("sentinel-")?.split_once('-')?;
    // Any client may set a name that looks similar.
    let is_id = id.len() == ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id || !["cmd", "pubsub"].contains(&link) {
        return None;
    }
    let (host, port) = field("addr")?.rsplit_once(':')?;
    let number = |name: &str| field(name).and_then(|number| number.parse().ok()).unwrap_or_default();
    Some(SentinelClient {
        id: id.to_owned(),
        connection: number("id"),
        from: Endpoint::new(host.trim_matches(['[', ']']), port.parse().ok()?),
        user: field("user").unwrap_or("default").to_owned(),
        age: number("age"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinels_are_told_from_other_clients_by_their_names() {
        let list = "id=3 addr=10.0.0.9:41022 laddr=10.0.0.1:6379 fd=8 name=sentinel-0123abcd-pubsub age=12 idle=1 flags=P \
             db=0 sub=1 psub=0 user=ops redir=-1 resp=2\n\
             id=4 addr=10.0.0.8:5 name= age=1 idle=1 user=default\n\
             id=5 addr=[fd00::9]:41023 name=sentinel-89ab0123-cmd age=0 idle=0\n\
             id=6 addr=10.0.0.7:6 name=sentinel-exporter age=0 idle=0 user=default\n\
             id=7 addr=10.0.0.7:7 name=sentinel-watcher-1 age=0 idle=0 user=default\n\
             id=8 addr=10.0.0.7:8 name=sentinel-0123abcd-1 age=0 idle=0 user=default\n";
        let found = sentinels(&Value::BulkString(list.into()));
        let ids: Vec<_> = found.iter().map(|client| (client.id.as_str(), client.user.as_str())).collect();
        assert_eq!(ids, [("0123abcd", "ops"), ("89ab0123", "default")]);
        assert_eq!(found[0].from, Endpoint::new("10.0.0.9", 41022));
        assert_eq!(found[1].from, Endpoint::new("fd00::9", 41023));
        assert_eq!((found[0].age, found[0].connection), (12, 3));
        assert_eq!(held_by(&Value::BulkString(list.into())), None);
        for position in [None, Some("0a:7+0b:9")] {
            let line = format!("id=9 addr=127.0.0.1:5 name={} age=1\n", holder(90, position));
            let expected = Holder { priority: 90, position: position.map(str::to_owned) };
            assert_eq!(held_by(&Value::BulkString(line.into())), Some(expected));
        }
        let (own, other) = (handover(7), handover(8));
        let list = format!("id=1 addr=10.0.0.7:1 name={own} fd=8\nid=2 addr=10.0.0.8:2 name={other} fd=9\n");
        assert_eq!(other_handovers(&Value::BulkString(list.into()), &own), ["10.0.0.8:2"]);
        assert!(found[0].is("0123abcdef") && !found[0].is("0123ffff") && !found[0].is("0123"));
    }
}
