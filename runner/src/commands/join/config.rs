//! The settings of `join`: resolved, checked, and with secrets that don't print.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use broker_fn::api::{Addr, Group, Kind};

use super::decide::ExpectedSentinels;
use super::server_command::{ServerCommand, ServerSettings};
use crate::broker::BrokerAt;
use crate::cli::{JoinArgs, JoinNode, JoinRedisArgs, JoinSentinelArgs};
use crate::config::{Nodes, check_time, resolve_broker, resolve_broker_url};
use crate::error::Failure;
use crate::node::connection::Access;
use crate::node::endpoint::Endpoint;
use crate::node::version::Version;

/// Everything that a `join` depends on besides the answers of other nodes.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    pub kind: Kind,
    /// The broker, once for each of the node's groups. A Redis server has one group.
    pub brokers: Vec<BrokerAt>,
    /// Sentinels to ask beside those that have registered.
    pub named: Vec<Addr>,
    /// How many Sentinels there are, if it is not the broker's number.
    pub sentinels: Option<u16>,
    /// The address at which other nodes reach this node.
    pub announce: Option<Addr>,
    /// Whether the node's data may be deleted if no Sentinel knows the node as a member.
    pub discard_data: bool,
    /// Whether the Redis server is a cache, which may start empty.
    pub is_cache: bool,
    /// How long a handover may take before the server is stopped.
    pub handover: Duration,
    /// The address of `--health`.
    pub health: Option<SocketAddr>,
    /// The command of `--on-event`.
    pub on_event: Option<String>,
    pub nodes: Nodes,
    /// How long to wait until the server can be started. After that, `join` fails.
    pub patience: Option<Duration>,
    /// How often to ask while waiting.
    pub poll_interval: Duration,
    /// How long the broker or a node may take to answer.
    pub command_timeout: Duration,
    /// Whether to print the decision and start nothing.
    pub dry_run: bool,
    pub command: ServerCommand,
    /// The port that the server will listen on.
    pub port: u16,
}

impl JoinConfig {
    /// Checks the command line.
    ///
    /// # Errors
    ///
    /// Everything that is wrong is reported at once.
    pub fn resolve(typed: JoinNode) -> Result<Self, Failure> {
        let mut wrong = Vec::new();
        let (kind, brokers, discard_data, is_cache, handover, on_event, join) = match typed {
            JoinNode::Redis(JoinRedisArgs { broker, discard_data, cache, handover, on_event, join }) => {
                let brokers = resolve_broker(broker, &mut wrong).into_iter().collect();
                (Kind::Redis, brokers, discard_data, cache, handover, on_event, join)
            }
            JoinNode::Sentinel(JoinSentinelArgs { broker, group, join }) => {
                let broker = resolve_broker_url(broker, &mut wrong);
                let brokers = broker.map(|broker| once_for_each(broker, group)).unwrap_or_default();
                (Kind::Sentinel, brokers, false, false, Duration::ZERO, None, join)
            }
        };
        // Destructured, so that a new flag can't be forgotten here.
        let JoinArgs {
            sentinel: named,
            sentinels,
            announce,
            health,
            access,
            patience,
            poll_interval,
            command_timeout,
            dry_run,
            server,
        } = join;
        let nodes = Nodes::resolve(access, command_timeout, &mut wrong);
        check_time("--poll-interval", poll_interval, &mut wrong);
        if let Some(patience) = patience {
            check_time("--patience", patience, &mut wrong);
        }
        let command = ServerCommand::new(server);
        check_server(kind, &command, &nodes, &mut wrong);
        let port = match command.settings() {
            Ok(settings) => own_port(kind, &settings, nodes.redis.tls.is_some(), &mut wrong),
            Err(error) => {
                wrong.push(format!("SERVER: {error:#}"));
                0
            }
        };
        if !wrong.is_empty() {
            return Err(Failure::Usage(wrong));
        }
        Ok(Self {
            kind,
            brokers,
            named,
            sentinels,
            announce,
            discard_data,
            is_cache,
            handover,
            health,
            on_event,
            nodes,
            patience,
            poll_interval,
            command_timeout,
            dry_run,
            command,
            port,
        })
    }
}

/// Checks that `join` can start this server, and that the server can keep its login.
fn check_server(kind: Kind, command: &ServerCommand, nodes: &Nodes, wrong: &mut Vec<String>) {
    if kind == Kind::Sentinel && command.config_file.is_none() {
        wrong.push(
            "SERVER: a Sentinel needs a writable configuration file; name the file after the program".into(),
        );
    }
    if !command.is_known() {
        wrong.push(
            "SERVER: the command contains no redis-server, redis-sentinel, valkey-server or \
             valkey-sentinel; name the server itself, not a shell around it: join reads the server's \
             configuration"
                .into(),
        );
    }
    if command.reads_stdin {
        wrong.push(
            "SERVER: join can't read a configuration from the server's standard input (`-`); use a \
             configuration file"
                .into(),
        );
    }
    if kind == Kind::Sentinel
        && let Some(login) = nodes.redis.login.as_ref().filter(|login| login.oddity(false).is_some())
        && let Some(odd) = login.oddity(command.version().is_some_and(Version::quotes_passwords))
    {
        wrong.push(format!(
            "--redis-password: the login contains {odd}: this Sentinel would write the login into \
             its file as it is, and could not start again; use a password of letters, digits and \
             other visible characters, without quotes"
        ));
    }
}

/// Each group once, in the given order. Without a group, the broker's default group.
fn once_for_each(broker: BrokerAt, groups: Vec<Group>) -> Vec<BrokerAt> {
    let mut seen = BTreeSet::new();
    let groups: Vec<Group> = groups.into_iter().filter(|group| seen.insert(group.clone())).collect();
    if groups.is_empty() {
        return vec![broker];
    }
    groups.into_iter().map(|group| BrokerAt { group: Some(group), ..broker.clone() }).collect()
}

impl JoinConfig {
    /// How nodes of this kind are reached.
    pub fn access(&self, kind: Kind) -> Access {
        match kind {
            Kind::Redis => self.nodes.redis.clone(),
            Kind::Sentinel => self.nodes.sentinels.clone(),
        }
    }

    /// How this node's own server is reached. `--allow` does not apply, because it is for the addresses of
    /// other nodes.
    pub fn own_access(&self) -> Access {
        Access { allow: Vec::new(), ..self.access(self.kind) }
    }

    pub fn expected(&self) -> ExpectedSentinels {
        ExpectedSentinels { number: self.sentinels.map(usize::from), named: self.named.len() }
    }
}

fn own_port(kind: Kind, settings: &ServerSettings, tls: bool, wrong: &mut Vec<String>) -> u16 {
    let (name, default) = if tls { ("tls-port", 0) } else { ("port", kind.default_port().get()) };
    let port = settings.number(name).unwrap_or(default);
    if port == 0 {
        let flag = if tls { "with --tls" } else { "without --tls" };
        wrong.push(format!(
            "SERVER: {flag}, the server needs a port that other nodes can reach: set `{name}`"
        ));
    }
    port
}

/// The addresses of a `bind`, if all of them are single addresses. A `-` before an address means that the
/// address may be missing.
pub fn concrete(bind: &[OsString]) -> Vec<IpAddr> {
    let address = |word: &OsString| {
        let word = word.to_str()?;
        word.strip_prefix('-').unwrap_or(word).parse().ok()
    };
    let addresses: Vec<Option<IpAddr>> = bind.iter().map(address).collect();
    let is_concrete = |address: &Option<IpAddr>| address.is_some_and(|ip| !ip.is_unspecified());
    // If the server listens on all addresses of one family, any address may be its own.
    if addresses.iter().all(is_concrete) { addresses.into_iter().flatten().collect() } else { Vec::new() }
}

/// The addresses at which this process may reach the server that it has started.
pub fn reached_at(config: &JoinConfig, settings: &ServerSettings) -> Vec<Endpoint> {
    let bind = concrete(settings.all("bind"));
    let own = match bind.iter().find(|ip| ip.is_loopback()).or(bind.first()) {
        Some(ip) => ip.to_string(),
        None if settings.all("bind").iter().any(|word| word.to_string_lossy().contains("::"))
            && settings.all("bind").len() == 1 =>
        {
            "::1".into()
        }
        None => "127.0.0.1".into(),
    };
    let own = Endpoint::new(own, config.port);
    // With TLS, the certificate may contain the announced name.
    let announced = config.announce.as_ref().map(Endpoint::from);
    [Some(own), announced].into_iter().flatten().collect()
}

#[cfg(test)]
pub mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, CliCommand};

    /// The configuration for this command line.
    pub fn config(kind: &str, flags: &[&str], server: &[&str]) -> Result<JoinConfig, Failure> {
        let words =
            [&["sentinel-runner", "join", kind, "--broker", "http://b"], flags, &["--"], server].concat();
        let CliCommand::Join(node) = Cli::try_parse_from(words).unwrap().command else {
            panic!("another command")
        };
        JoinConfig::resolve(node)
    }

    #[test]
    fn what_can_not_work_is_said_at_once() {
        let wrong = |kind: &str, flags: &[&str], server: &[&str]| match config(kind, flags, server) {
            Err(Failure::Usage(wrong)) => wrong.join("\n"),
            other => panic!("{other:?}"),
        };
        assert!(wrong("sentinel", &[], &["redis-sentinel"]).contains("configuration file"));
        assert!(wrong("redis", &[], &["redis-server", "-"]).contains("standard input"));
        assert!(
            wrong("redis", &[], &["sh", "-c", "exec redis-server /etc/redis.conf"])
                .contains("shell around it")
        );
        assert!(wrong("redis", &[], &["redis-server", "--port", "0"]).contains("`port`"));
        assert!(wrong("redis", &["--tls"], &["redis-server"]).contains("`tls-port`"));
        assert!(wrong("redis", &["--patience", "0s"], &["redis-server"]).contains("--patience"));
    }

    #[test]
    fn the_server_is_reached_where_it_listens() {
        let at = |server: &[&str]| {
            let config = config("redis", &[], &[&["redis-server"], server].concat()).unwrap();
            let settings = config.command.settings().unwrap();
            reached_at(&config, &settings)[0].to_string()
        };
        assert_eq!(at(&[]), "127.0.0.1:6379");
        assert_eq!(at(&["--bind", "10.0.0.7", "-::1", "--port", "7000"]), "[::1]:7000");
        assert_eq!(at(&["--bind", "10.0.0.7"]), "10.0.0.7:6379");
        assert_eq!(at(&["--bind", "*", "-::*"]), "127.0.0.1:6379");
    }
}
