//! Who is connected to a node: `CLIENT LIST`, and the Sentinels among them.
//!
//! A Sentinel names its connections `sentinel-` and the first 8 characters of its id, then `-cmd` or `-pubsub`
//! (`sentinelSetClientName` in `sentinel.c`). It can do so only once it is logged in. A name proves that the Sentinel has arrived,
//! and not that it is still alive: one that is frozen stays connected.

use redis::Value;

use super::command::{Command, command};
use super::endpoint::Endpoint;
use super::reply::text;

/// How much of an id stands in a name.
const ID: usize = 8;

/// The right to ask for the list.
pub const RIGHT: &str = "client|list";

/// What is asked of a Redis server. A Sentinel subscribes to the hello channel there; the list of subscribers is short also
/// beside thousands of clients.
pub fn subscribers() -> Command {
    command!("CLIENT", "LIST", "TYPE", "pubsub")
}

/// What is asked of a Sentinel, which nobody subscribes to but clients.
pub fn all() -> Command {
    command!("CLIENT", "LIST", "TYPE", "normal")
}

/// A Sentinel's connection to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelClient {
    /// The start of its id.
    pub id: String,
    /// The number of the connection, for `CLIENT KILL ID`.
    pub connection: u64,
    /// Where it comes from.
    pub from: Endpoint,
    /// The ACL user that it is logged in as.
    pub user: String,
    /// For how many seconds it has been connected.
    pub age: u64,
}

impl SentinelClient {
    /// Whether that Sentinel is the one with this id.
    pub fn is(&self, id: &str) -> bool {
        id.get(..ID) == Some(&self.id)
    }
}

/// The Sentinels in the reply to `CLIENT LIST`.
pub fn sentinels(reply: &Value) -> Vec<SentinelClient> {
    text(reply).lines().filter_map(sentinel).collect()
}

/// How `join` names its connection to its own server. Behind it stands the `replica-priority` that this has when it is not held, and
/// behind [`AT`] how far its data goes.
const HOLDER: &str = "join-priority-";
const AT: &str = "-at-";

/// The name of `join`'s connection to its own server.
pub fn holder(priority: u32, position: Option<&str>) -> String {
    let position = position.map(|position| format!("{AT}{position}")).unwrap_or_default();
    format!("{HOLDER}{priority}{position}")
}

/// What a server's `join` says by the name of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The `replica-priority` that the server has when it is not held.
    pub priority: u32,
    /// How far its data goes, where that is known.
    pub position: Option<String>,
}

/// What [`holder`] has put into a name, by the reply to `CLIENT LIST`.
pub fn held_by(reply: &Value) -> Option<Holder> {
    let words = text(reply);
    let name = words.split_whitespace().find_map(|word| word.strip_prefix("name=")?.strip_prefix(HOLDER))?;
    let (priority, position) = match name.split_once(AT) {
        Some((priority, position)) => (priority, Some(position.to_owned())),
        None => (name, None),
    };
    Some(Holder { priority: priority.parse().ok()?, position })
}

/// How a connection is named for as long as it changes the master.
const HANDOVER: &str = "handover-";

/// The name of a connection that is there for as long as the master is changed.
pub fn handover(number: u32) -> String {
    format!("{HANDOVER}{number:08x}")
}

/// Where others come from that are changing the master, by the reply to [`subscribers`].
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
    // Any client may have a name that looks like it.
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
