//! `join`: starts a Redis server or a Sentinel as a member of its system, or as one that is to become one.
//!
//! | module | does | I/O |
//! | --- | --- | --- |
//! | [`ask`] | asks the broker, the Sentinels, and the servers that they name | yes |
//! | [`decide`] | from what was heard, and what this node is, to how it starts | no |
//! | [`config_file`] | reads the server's command and file; writes a Sentinel's | files |
//! | [`server`] | runs the server, and passes signals on | yes |
//! | [`registration`] | registers it once it answers, and keeps it registered | yes |

pub mod ask;
pub mod config_file;
pub mod decide;
pub mod registration;
pub mod server;

use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use broker_fn::api::{Addr, Group, Kind};
use tokio::time::{Instant, sleep};

pub use self::decide::Waiting;

use self::ask::{Asker, Place};
use self::config_file::{ServerCommand, Settings, line, shown, write_sentinel_file};
use self::decide::{Decision, Disk, Expected, This, decide};
use self::registration::{Registrar, jittered};
use self::server::{Server, Signals};
use crate::broker::Broker;
use crate::cli::{Join, JoinNode, JoinRedis};
use crate::config::{BrokerAt, Nodes, check_time};
use crate::connection::Connections;
use crate::endpoint::Endpoint;
use crate::error::Failure;
use crate::output::{self, Ending};
use crate::report::Report;

/// Everything that a join depends on besides what is heard.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the node is.
    pub kind: Kind,
    /// The broker, and the group.
    pub broker: BrokerAt,
    /// Sentinels to ask beside those that have registered.
    pub named: Vec<Addr>,
    /// How many Sentinels there are, where it is not what the broker expects.
    pub sentinels: Option<u16>,
    /// Where the others reach this node.
    pub announce: Option<Addr>,
    /// Whether data may go that nobody knows as the system's.
    pub discard_data: bool,
    /// How the nodes are reached.
    pub nodes: Nodes,
    /// How long to wait before the server starts.
    pub patience: Option<Duration>,
    /// How often to ask while it waits.
    pub poll_interval: Duration,
    /// How long the broker or a node may take to answer.
    pub command_timeout: Duration,
    /// Whether to print the decision and start nothing.
    pub dry_run: bool,
    /// The server's command.
    pub command: ServerCommand,
    /// The port that it will listen on.
    pub port: u16,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once.
    pub fn resolve(typed: JoinNode) -> Result<Self, Failure> {
        let (kind, discard_data, join) = match typed {
            JoinNode::Redis(JoinRedis { discard_data, join }) => (Kind::Redis, discard_data, join),
            JoinNode::Sentinel(join) => (Kind::Sentinel, false, join),
        };
        // Destructured, so that a new flag can't be forgotten here.
        let Join {
            broker,
            sentinel: named,
            sentinels,
            announce,
            access,
            patience,
            poll_interval,
            command_timeout,
            dry_run,
            server,
        } = join;
        let mut wrong = Vec::new();
        let broker = BrokerAt::resolve(broker, &mut wrong);
        let nodes = Nodes::resolve(access, command_timeout, &mut wrong);
        check_time("--poll-interval", poll_interval, &mut wrong);
        if let Some(patience) = patience {
            check_time("--patience", patience, &mut wrong);
        }
        let command = ServerCommand::new(server);
        if kind == Kind::Sentinel && command.config_file.is_none() {
            wrong.push(
                "SERVER: a Sentinel needs a configuration file that it can write; name it behind its program"
                    .into(),
            );
        }
        if !command.is_known {
            wrong.push(
                "SERVER: there is no redis-server, redis-sentinel, valkey-server or valkey-sentinel among its words; name it \
                 itself, not a shell around it: join has to know its configuration"
                    .into(),
            );
        }
        if command.reads_stdin {
            wrong.push(
                "SERVER: join can't see what you give the server on its standard input, `-`; put it into a file".into(),
            );
        }
        let port = match command.settings() {
            Ok(settings) => own_port(kind, &settings, nodes.redis.tls.is_some(), &mut wrong),
            Err(error) => {
                wrong.push(format!("SERVER: {error:#}"));
                0
            }
        };
        match broker {
            Some(broker) if wrong.is_empty() => Ok(Self {
                kind,
                broker,
                named,
                sentinels,
                announce,
                discard_data,
                nodes,
                patience,
                poll_interval,
                command_timeout,
                dry_run,
                command,
                port,
            }),
            Some(_) | None => Err(Failure::Usage(wrong)),
        }
    }
}

impl Config {
    fn expected(&self) -> Expected {
        Expected { number: self.sentinels.map(usize::from), named: self.named.len() }
    }
}

/// Whether a Sentinel here can have an option of its peers'. A script is a file of theirs: Sentinel does not start where it
/// can't run it.
fn is_usable_here(name: &str, value: &str) -> bool {
    let is_executable = |path: &str| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    !name.ends_with("-script") || is_executable(value)
}

fn own_port(kind: Kind, settings: &Settings, tls: bool, wrong: &mut Vec<String>) -> u16 {
    let (name, default) = if tls { ("tls-port", 0) } else { ("port", kind.default_port().get()) };
    let port = settings.port(name).unwrap_or(default);
    if port == 0 {
        let flag = if tls { "with --tls" } else { "without --tls" };
        wrong.push(format!("SERVER: {flag}, it has to have a port that others can reach: set `{name}`"));
    }
    port
}

/// Starts the server as soon as it is clear how, and ends with its exit code.
///
/// # Errors
///
/// When it is not started.
pub async fn join(config: &Config, report: &Report) -> Result<Ending, Failure> {
    let mut signals = Signals::new().map_err(Failure::Other)?;
    let settings = config.command.settings().map_err(Failure::Other)?;
    let asker = Asker {
        kind: config.kind,
        place: Place {
            announce: config.announce.clone(),
            port: config.port,
            bind: concrete(settings.all("bind")),
        },
        broker: Broker::new(&config.broker).map_err(Failure::Other)?,
        group: config.broker.group.clone(),
        named: config.named.clone(),
        servers: config.nodes.connections(report),
        command_timeout: config.command_timeout,
    };
    let clear = until_clear(config, &asker, report);
    let (mut decision, group) = tokio::select! {
        clear = clear => clear?,
        signal = signals.next() => {
            let number = u8::try_from(signal.as_raw()).unwrap_or_default();
            return Err(Failure::Stopped(128 + number));
        }
    };
    if let Decision::Monitor { options, .. } = &mut decision {
        options.retain(|(name, value)| {
            let is_usable = is_usable_here(name, value);
            if !is_usable {
                report.warning(format_args!(
                    "the other Sentinels have `{name} {value}`, which can't be run here: left out"
                ));
            }
            is_usable
        });
    }
    // Read again: it may have waited for long.
    let settings = config.command.settings().map_err(Failure::Other)?;
    let launch = Launch::new(config, &settings, &decision, group.as_ref());
    if config.dry_run {
        let commands = launch.dry_run(&decision);
        let decision = said(&decision, config, &settings);
        report.result(if commands.is_empty() { decision.clone() } else { commands.join("\n") });
        return Ok(Ending::Decided(output::Launch { decision, commands }));
    }
    report.event(said(&decision, config, &settings));
    launch.write_file().map_err(Failure::Other)?;
    let server = Server::start(&launch.words, launch.input.as_deref()).map_err(Failure::Other)?;
    // What --allow names is where the others are; this one is reached from within.
    let mut access = match config.kind {
        Kind::Redis => config.nodes.redis.clone(),
        Kind::Sentinel => config.nodes.sentinels.clone(),
    };
    access.allow.clear();
    let registrar = Registrar {
        broker: &asker.broker,
        connections: &Connections::new(access, report),
        reached_at: reached_at(config, &settings),
        announce: config.announce.clone(),
        port: config.port,
        decision: &decision,
        promotes: launch.promotes,
        asker: &asker,
        expected: config.expected(),
        poll_interval: config.poll_interval,
        report,
    };
    tokio::select! {
        code = server.ended(&mut signals) => Ok(Ending::Ended(code)),
        never = registrar.keep() => never,
    }
}

/// Asks until the answers say how to start.
async fn until_clear(
    config: &Config,
    asker: &Asker,
    report: &Report,
) -> Result<(Decision, Option<Group>), Failure> {
    let started = Instant::now();
    let expected = config.expected();
    let mut said = None;
    loop {
        // Read each time: what is waited for may be a person, who puts files there.
        let settings = config.command.settings().map_err(Failure::Other)?;
        let monitors = |group: &Group| settings.monitors(group.as_str());
        // It needs nobody's word: what it monitors is what it did before it was restarted.
        if config.kind == Kind::Sentinel && config.broker.group.as_ref().is_some_and(monitors) {
            return Ok((Decision::AsItIs, config.broker.group.clone()));
        }
        let (heard, group) = asker.ask().await;
        let this = match config.kind {
            Kind::Redis => This::Redis { disk: settings.disk(), discard_data: config.discard_data },
            Kind::Sentinel => This::Sentinel {
                // Which group is meant only the broker can say; where it is down, any is better than to wait.
                monitors: match &group {
                    Some(group) => monitors(group),
                    None => !settings.monitored().is_empty(),
                },
            },
        };
        let decision = decide(&heard, this, expected);
        let Decision::Wait(waiting) = decision else { return Ok((decision, group)) };
        if config.dry_run {
            return Ok((Decision::Wait(waiting), group));
        }
        let out_of_patience = config.patience.filter(|patience| started.elapsed() >= *patience);
        if let Some(after) = out_of_patience {
            return Err(Failure::OutOfPatience { after, waiting_for: Box::new(waiting) });
        }
        if said.as_ref() != Some(&waiting) {
            report.event(format_args!("waiting: {waiting}\nhint: {}", waiting.hint()));
            said = Some(waiting);
        }
        let pause = jittered(config.poll_interval);
        let left = config.patience.map(|patience| patience.saturating_sub(started.elapsed()));
        sleep(left.map_or(pause, |left| pause.min(left))).await;
    }
}

/// What is started, and what it is given.
struct Launch<'a> {
    words: Vec<OsString>,
    /// Configuration for its standard input. Unlike a command line, nobody else can read that.
    input: Option<String>,
    /// The Sentinel's file, and lines to add to it.
    file: Option<(&'a PathBuf, Vec<String>)>,
    /// Whether it has to be sent `REPLICAOF NO ONE` once it answers.
    promotes: bool,
}

impl<'a> Launch<'a> {
    fn new(config: &'a Config, settings: &Settings, decision: &Decision, group: Option<&Group>) -> Self {
        let mut words = config.command.words.clone();
        // In the background it would be nobody's child.
        words.extend(["--daemonize", "no"].map(OsString::from));
        let promotes = *decision == Decision::Lead && settings.follows();
        let (input, file) = match config.kind {
            Kind::Redis => {
                words.extend(redis_options(config, decision, promotes).into_iter().map(OsString::from));
                let input = replication_login(config);
                if input.is_some() {
                    // Redis looks for it in the first place and in the last.
                    words.push("-".into());
                }
                (input, None)
            }
            Kind::Sentinel => {
                let lines = sentinel_lines(config, decision, group);
                (None, config.command.config_file.as_ref().map(|path| (path, lines)))
            }
        };
        Self { words, input, file, promotes }
    }

    fn write_file(&self) -> anyhow::Result<()> {
        match &self.file {
            Some((path, lines)) if !lines.is_empty() || !path.exists() => write_sentinel_file(path, lines),
            Some(_) | None => Ok(()),
        }
    }

    /// What would be started, without secrets; nothing where it would wait.
    fn dry_run(&self, decision: &Decision) -> Vec<String> {
        if let Decision::Wait(_) = decision {
            return Vec::new();
        }
        let mut lines = vec![shown(&self.words)];
        if self.promotes {
            lines.push("and once it answers: REPLICAOF NO ONE".into());
        }
        let input = self.input.iter().flat_map(|input| input.lines());
        lines.extend(input.map(|line| format!("on its standard input: {}", masked(line))));
        if let Some((path, added)) = &self.file {
            lines.extend(added.iter().map(|line| format!("in {}: {}", path.display(), masked(line))));
        }
        lines
    }
}

/// A configuration line without the password in it.
fn masked(line: &str) -> String {
    for secret in ["masterauth ", "auth-pass "] {
        if let Some((before, _)) = line.split_once(secret) {
            return format!("{before}{secret}***");
        }
    }
    line.to_owned()
}

/// The options of a Redis server. They come last, and so count before what its file says, which may be of another time.
fn redis_options(config: &Config, decision: &Decision, promotes: bool) -> Vec<String> {
    let mut options = Vec::new();
    let mut option = |words: &[&str]| options.extend(words.iter().map(|word| (*word).to_owned()));
    if let Some(announce) = &config.announce {
        option(&["--replica-announce-ip", announce.host.as_str()]);
        option(&["--replica-announce-port", &announce.port.to_string()]);
    }
    match decision {
        Decision::Follow { master, .. } => option(&["--replicaof", &master.host, &master.port.to_string()]),
        // Nobody's replica, until it is promoted: `no one` would not take back what its file says ([`Settings::follows`]).
        Decision::Lead if promotes => option(&["--replicaof", "127.0.0.1", "0"]),
        Decision::Lead
        | Decision::Alone
        | Decision::AsItIs
        | Decision::Monitor { .. }
        | Decision::Wait(_) => {}
    }
    options
}

/// What a replica needs to log in to its master; the master needs it too, for the day when it is one.
fn replication_login(config: &Config) -> Option<String> {
    let login = config.nodes.replication_login.as_ref()?;
    let user = login.username.as_ref().map(|user| line(&["masteruser", user]) + "\n").unwrap_or_default();
    Some(user + &line(&["masterauth", login.password.reveal()]) + "\n")
}

/// The lines that a Sentinel's file gets.
fn sentinel_lines(config: &Config, decision: &Decision, group: Option<&Group>) -> Vec<String> {
    let mut lines = Vec::new();
    if *decision == Decision::AsItIs {
        return lines;
    }
    let mut add = |words: &[&str]| lines.push(line(words));
    let is_name = |host: &str| host.parse::<IpAddr>().is_err();
    let announce = config.announce.as_ref();
    let named_master = match decision {
        Decision::Monitor { master, .. } => is_name(&master.host),
        _ => false,
    };
    if named_master || announce.is_some_and(|announce| is_name(announce.host.as_str())) {
        add(&["sentinel", "resolve-hostnames", "yes"]);
    }
    if named_master {
        // As its peers do, or they name it by a name, and this one by an address.
        add(&["sentinel", "announce-hostnames", "yes"]);
    }
    if let Some(announce) = announce {
        add(&["sentinel", "announce-ip", announce.host.as_str()]);
        add(&["sentinel", "announce-port", &announce.port.to_string()]);
    }
    if let (Decision::Monitor { master, quorum, options }, Some(group)) = (decision, group) {
        let group = group.as_str();
        add(&["sentinel", "monitor", group, &master.host, &master.port.to_string(), &quorum.to_string()]);
        for (name, value) in options {
            add(&["sentinel", name, group, value]);
        }
        if let Some(login) = &config.nodes.redis.login {
            if let Some(user) = &login.username {
                add(&["sentinel", "auth-user", group, user]);
            }
            add(&["sentinel", "auth-pass", group, login.password.reveal()]);
        }
    }
    lines
}

/// What is about to be done, for a person.
fn said(decision: &Decision, config: &Config, settings: &Settings) -> String {
    match decision {
        Decision::Alone if config.kind == Kind::Redis && settings.disk() == Disk::Data => {
            "starting alone: nobody knows of a system yet; this node has data on its disk".into()
        }
        Decision::Alone => "starting alone: nobody knows of a system yet".into(),
        Decision::AsItIs => "starting with the master that its file names".into(),
        Decision::Follow { master, answers: true } => format!("starting as a replica of {master}"),
        Decision::Follow { master, answers: false } => format!(
            "starting as a replica of {master}, which does not answer: the data on this node's disk is there for the \
             Sentinels to promote it"
        ),
        Decision::Lead => {
            "starting as the master: the Sentinels name this node, and no replica has what it lacks".into()
        }
        Decision::Monitor { master, quorum, .. } => {
            format!("starting to monitor {master}, with quorum {quorum}")
        }
        Decision::Wait(waiting) => format!("would wait: {waiting}\nhint: {}", waiting.hint()),
    }
}

/// The addresses of a `bind` that are not `any`; `-` before one says that it may be missing.
fn concrete(bind: &[String]) -> Vec<IpAddr> {
    let addresses: Vec<Option<IpAddr>> =
        bind.iter().map(|word| word.strip_prefix('-').unwrap_or(word).parse().ok()).collect();
    let is_concrete = |address: &Option<IpAddr>| address.is_some_and(|ip| !ip.is_unspecified());
    // Where it listens on all of one family, any address may be its own.
    if addresses.iter().all(is_concrete) { addresses.into_iter().flatten().collect() } else { Vec::new() }
}

/// Where this process may reach the server that it has started.
fn reached_at(config: &Config, settings: &Settings) -> Vec<Endpoint> {
    let bind = concrete(settings.all("bind"));
    let own = match bind.iter().find(|ip| ip.is_loopback()).or(bind.first()) {
        Some(ip) => ip.to_string(),
        None if settings.all("bind").iter().any(|word| word.contains("::"))
            && settings.all("bind").len() == 1 =>
        {
            "::1".into()
        }
        None => "127.0.0.1".into(),
    };
    let own = Endpoint::new(own, config.port);
    // By TLS, the name in its certificate may be the one that it announces.
    let announced = config.announce.as_ref().map(Endpoint::from);
    [Some(own), announced].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn config(kind: &str, flags: &[&str], server: &[&str]) -> Result<Config, Failure> {
        let words =
            [&["sentinel-runner", "join", kind, "--broker", "http://b"], flags, &["--"], server].concat();
        let Command::Join(node) = Cli::try_parse_from(words).unwrap().command else {
            panic!("another command")
        };
        Config::resolve(node)
    }

    fn words(launch: &Launch) -> Vec<String> {
        launch.words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    const LOGIN: [&str; 4] = ["--redis-username", "ops", "--redis-password", "s3 cret"];

    #[test]
    fn a_password_is_on_no_command_line() {
        let config = config("redis", &LOGIN, &["redis-server", "--port", "7000"]).unwrap();
        let follow = Decision::Follow { master: Endpoint::new("10.0.0.7", 6379), answers: true };
        let launch = Launch::new(&config, &Settings::default(), &follow, None);
        let expected = "redis-server --port 7000 --daemonize no --replicaof 10.0.0.7 6379 -";
        assert_eq!(words(&launch).join(" "), expected);
        assert_eq!(launch.input.as_deref(), Some("masteruser ops\nmasterauth \"s3 cret\"\n"));
        let shown = launch.dry_run(&follow).join("\n");
        assert!(shown.contains("masterauth ***") && !shown.contains("cret\""), "{shown}");
    }

    #[test]
    fn a_sentinel_monitors_as_its_peers_do() {
        let flags = [&LOGIN[..], &["--announce", "s1.example:26380"]].concat();
        let config = config("sentinel", &flags, &["redis-sentinel", "/nowhere/sentinel.conf"]).unwrap();
        let monitor = Decision::Monitor {
            master: Endpoint::new("10.0.0.7", 6379),
            quorum: 2,
            options: vec![("down-after-milliseconds".into(), "5000".into())],
        };
        let group: Group = "mymaster".parse().unwrap();
        let settings = Settings::default();
        let launch = Launch::new(&config, &settings, &monitor, Some(&group));
        assert_eq!(words(&launch), ["redis-sentinel", "/nowhere/sentinel.conf", "--daemonize", "no"]);
        assert_eq!(
            launch.file.as_ref().unwrap().1,
            [
                "sentinel resolve-hostnames yes",
                "sentinel announce-ip s1.example",
                "sentinel announce-port 26380",
                "sentinel monitor mymaster 10.0.0.7 6379 2",
                "sentinel down-after-milliseconds mymaster 5000",
                "sentinel auth-user mymaster ops",
                "sentinel auth-pass mymaster \"s3 cret\"",
            ]
        );
        assert!(!launch.dry_run(&monitor).join("\n").contains("cret\""));
        let named =
            Decision::Monitor { master: Endpoint::new("r1.example", 6379), quorum: 2, options: vec![] };
        let lines = Launch::new(&config, &settings, &named, Some(&group)).file.unwrap().1;
        assert!(lines.contains(&"sentinel announce-hostnames yes".to_owned()), "{lines:?}");
        assert!(Launch::new(&config, &settings, &Decision::AsItIs, Some(&group)).file.unwrap().1.is_empty());
    }

    #[test]
    fn a_node_that_leads_or_follows_overrides_its_file() {
        let config = config("redis", &["--announce", "10.0.0.8:7000"], &["redis-server"]).unwrap();
        let announce = "--replica-announce-ip 10.0.0.8 --replica-announce-port 7000";
        let launch = |settings: &Settings, decision| Launch::new(&config, settings, &decision, None);
        let settings = config.command.settings().unwrap();
        for decision in [Decision::Lead, Decision::Alone] {
            assert!(words(&launch(&settings, decision)).join(" ").ends_with(announce));
        }
        // Whatever made it a replica before.
        let followed = ServerCommand::new(
            ["redis-server", "--replicaof", "10.0.0.9", "6379"].map(OsString::from).into(),
        );
        let lead = launch(&followed.settings().unwrap(), Decision::Lead);
        assert!(words(&lead).join(" ").ends_with(&format!("{announce} --replicaof 127.0.0.1 0")));
        assert!(lead.dry_run(&Decision::Lead).join("\n").contains("REPLICAOF NO ONE"));
    }

    #[test]
    fn a_script_of_the_other_sentinels_is_taken_over_where_it_can_be_run() {
        for name in ["notification-script", "client-reconfig-script"] {
            assert!(is_usable_here(name, "/bin/sh"));
            assert!(!is_usable_here(name, "/nowhere/notify.sh"));
            assert!(!is_usable_here(name, "/"), "a folder");
        }
        assert!(is_usable_here("down-after-milliseconds", "5000"));
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
