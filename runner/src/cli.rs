//! What the user types. Everything after it works on what `config` makes of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use broker_fn::api::{Addr, Group, Host, Invalid, Kind};
use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use ipnet::IpNet;

use crate::report::document::CommandName;
use crate::report::style::Choice;
use crate::report::{LogFormat, Output, ReportSettings};

/// Turns Redis servers and Sentinels that have registered with a broker into one verified high-availability system.
#[derive(Debug, Parser)]
#[command(name = "sentinel-runner", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,

    /// What is shown, and how
    #[command(flatten)]
    pub show: ShowArgs,
}

/// What is shown, and how: the same for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct ShowArgs {
    /// What is written to standard output: text for people, or one JSON document (docs/output.md), however it ends; and of `status`,
    /// metrics or addresses
    #[arg(long, env = "SENTINEL_RUNNER_OUTPUT", global = true, value_enum, default_value_t)]
    pub output: Output,

    /// What is written to standard error: text for people, or one JSON object a line
    #[arg(
        long,
        env = "SENTINEL_RUNNER_LOG_FORMAT",
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub log_format: LogFormat,

    /// When to colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        env = "SENTINEL_RUNNER_COLOR",
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t
    )]
    pub color: Choice,

    /// Say nothing but warnings and errors
    #[arg(short, long, env = "SENTINEL_RUNNER_QUIET", global = true, conflicts_with = "verbose", value_parser = BoolishValueParser::new())]
    pub quiet: bool,

    /// Show every command and its reply
    #[arg(short, long, env = "VERBOSE", global = true, value_parser = BoolishValueParser::new())]
    pub verbose: bool,
}

impl ShowArgs {
    /// As the report takes it.
    #[must_use]
    pub fn settings(&self) -> ReportSettings {
        let Self { output, log_format, color, quiet, verbose } = *self;
        ReportSettings { output, log: log_format, colour: color, quiet, verbose, lasts: true }
    }
}

/// What was typed can't be run, or asks for help.
#[derive(Debug)]
pub struct Wrong {
    /// What clap has to say.
    pub error: clap::Error,
    /// The command, as far as one was given.
    pub command: CommandName,
    /// Whether one JSON document is to come of it all the same.
    pub json: bool,
}

impl Cli {
    /// Reads what was typed: the program's name, and what follows.
    ///
    /// # Errors
    ///
    /// When it is not what the commands take, or asks for help.
    pub fn read(typed: impl IntoIterator<Item = OsString>) -> Result<Self, Box<Wrong>> {
        let typed: Vec<OsString> = typed.into_iter().collect();
        let own = typed.iter().skip(1).take_while(|word| *word != "--");
        let text: Vec<_> = own.map(|word| word.to_string_lossy()).collect();
        // What these two say counts for what is said of all others, so it is needed before clap has read them.
        let value = |flag: &str, variable: &str| {
            let given =
                text.iter().enumerate().rev().find_map(|(index, word)| match word.strip_prefix(flag)? {
                    "" => text.get(index + 1).map(ToString::to_string),
                    rest => rest.strip_prefix('=').map(str::to_owned),
                });
            given.or_else(|| std::env::var(variable).ok()).unwrap_or_default()
        };
        let colour = match value("--color", "SENTINEL_RUNNER_COLOR").as_str() {
            "always" => ColorChoice::Always,
            "never" => ColorChoice::Never,
            _ => ColorChoice::Auto,
        };
        let mut cli = Self::command().color(colour);
        let read = cli.try_get_matches_from_mut(&typed).and_then(|matches| Self::from_arg_matches(&matches));
        let read = read.and_then(|read| match &read.command {
            _ if !read.show.output.is_of_status() => Ok(read),
            CliCommand::Status(status) if !status.watch => Ok(read),
            _ => {
                let what =
                    "--output prometheus, env and uri are what one look of `status` writes, without --watch";
                Err(cli.error(ErrorKind::ArgumentConflict, what))
            }
        });
        read.map_err(|error| {
            let command = |word| CommandName::ALL.into_iter().find(|name| name.as_str() == word);
            Box::new(Wrong {
                error,
                command: text.iter().find_map(|word| command(word.as_ref())).unwrap_or(CommandName::None),
                json: value("--output", "SENTINEL_RUNNER_OUTPUT") == "json",
            })
        })
    }
}

/// The variables that hold secrets, by what the flags say of themselves.
#[must_use]
pub fn secret_variables() -> BTreeSet<OsString> {
    fn of(command: &clap::Command) -> BTreeSet<OsString> {
        let secret = command.get_arguments().filter(|argument| argument.is_hide_env_values_set());
        let own = secret.filter_map(|argument| argument.get_env()).map(OsString::from);
        own.chain(command.get_subcommands().flat_map(of)).collect()
    }
    of(&Cli::command())
}

impl CliCommand {
    /// Which it is.
    #[must_use]
    pub fn name(&self) -> CommandName {
        match self {
            Self::Bootstrap(_) => CommandName::Bootstrap,
            Self::Status(_) => CommandName::Status,
            Self::Verify(_) => CommandName::Verify,
            Self::Failover(_) => CommandName::Failover,
            Self::Roll(_) => CommandName::Roll,
            Self::Leave(_) => CommandName::Leave,
            Self::Register(_) => CommandName::Register,
            Self::Deregister(_) => CommandName::Deregister,
            Self::Join(_) => CommandName::Join,
            Self::Probe(_) => CommandName::Probe,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Wait until the expected nodes have registered, make them one system, verify it, and exit
    ///
    /// May be run again at any time: on a healthy system it changes nothing.
    #[command(after_help = EXIT_CODES)]
    Bootstrap(BootstrapArgs),

    /// Show what the broker knows beside what the servers say; nothing is changed
    ///
    /// The exit code is 0 only where the system is verified; otherwise it says what keeps it from being.
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),

    /// Check once that the system is verified; with --failover, that it also comes through a failover
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArgs),

    /// Make another Redis server the master; no acknowledged write is lost
    ///
    /// Writes are paused, the replicas get what they lack, a Sentinel fails over, the old master is attached to the new one, and
    /// the system is verified. Clients can't write for about a second. The system has to be verified first.
    #[command(after_help = EXIT_CODES)]
    Failover(FailoverArgs),

    /// Run a command for each Redis server, one after the other: the replicas first, the master once it has handed over
    ///
    /// For restarts and upgrades: `roll --broker URL -- ssh {host} systemctl restart redis-server`. After each the system has
    /// to be verified with that server again. It stops at the first that fails, and says how to go on.
    #[command(after_help = EXIT_CODES)]
    Roll(RollArgs),

    /// Take a Redis server or a Sentinel out of the system for good
    ///
    /// A master hands over first. Then the node is cut off, the broker forgets it, and the Sentinels do, one after the other.
    /// The server itself is left running: stop it afterwards. How many nodes there are to be without it, if that is fewer than
    /// the broker expects, say --redis or --sentinels.
    #[command(after_help = EXIT_CODES)]
    Leave(LeaveArgs),

    /// Look once at one Redis server or Sentinel: exit code 0 if it answers and is what was asked, else 1
    ///
    /// For Docker's HEALTHCHECK, and for probes that can't ask `join --health` by HTTP. It asks that node alone, and changes
    /// nothing.
    #[command(after_help = EXIT_CODES)]
    Probe(ProbeArgs),

    /// Register a Redis server or a Sentinel with the broker, or say that it is still there
    #[command(after_help = EXIT_CODES)]
    Register(RegisterArgs),

    /// Have the broker forget a Redis server or a Sentinel; the server itself is left alone
    #[command(after_help = EXIT_CODES)]
    Deregister(DeregisterArgs),

    /// Start a Redis server or a Sentinel as a member of its system, or as one that is to become one
    ///
    /// It asks the Sentinels before it starts the server: as a replica of the master that they name, or held where nobody
    /// knows of a system, taking no writes; then it registers it with the broker. Where that is unclear it waits, and says for
    /// what. It passes signals on to the server, and ends with the server's exit code.
    #[command(subcommand, after_help = EXIT_CODES)]
    Join(JoinNode),
}

/// What `join` starts.
#[derive(Debug, Subcommand)]
pub enum JoinNode {
    /// Start a Redis server: `join redis --broker URL -- redis-server /etc/redis/redis.conf`
    #[command(after_help = EXIT_CODES)]
    Redis(JoinRedisArgs),

    /// Start a Sentinel: `join sentinel --broker URL -- redis-sentinel /var/lib/redis/sentinel.conf`
    ///
    /// Its configuration file is made where there is none, and its folder too.
    #[command(after_help = EXIT_CODES)]
    Sentinel(JoinSentinelArgs),
}

/// The flags of `join sentinel`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct JoinSentinelArgs {
    /// The broker
    #[command(flatten)]
    pub broker: BrokerUrlArgs,

    /// A group, of which it is to monitor the master; may be repeated, or given as a list with commas, for a Sentinel that
    /// watches several [default: the broker's default group]
    #[arg(long, env = "SENTINEL_GROUP", value_name = "NAME", value_delimiter = ',')]
    pub group: Vec<Group>,

    /// What both kinds of nodes have in common
    #[command(flatten)]
    pub join: JoinArgs,
}

/// The flags of `join redis`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct JoinRedisArgs {
    /// The broker, and the group that is meant
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// Delete the data on this node's disk, where it is to become a replica and nobody knows it as a member of the
    /// system: the master's data takes its place. For one start: never put the variable into an environment file
    #[arg(long, env = "DISCARD_DATA", value_parser = BoolishValueParser::new())]
    pub discard_data: bool,

    /// What this server holds is a cache: where the Sentinels name it as the master and nobody has any data left, it starts empty,
    /// in place of waiting for somebody who has
    #[arg(long, env = "CACHE", value_parser = BoolishValueParser::new())]
    pub cache: bool,

    /// How long a server that is the master may take, once `join` is told to stop, to hand over to a replica; then it is stopped,
    /// whatever came of it. 0s: it is stopped at once
    #[arg(long, env = "HANDOVER", value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub handover: Duration,

    /// A command for /bin/sh that is run when this server is promoted, demoted, fenced or no longer fenced, and when a failover begins
    /// and ends: each is told once, as EVENT, with EVENT_NODE,
    /// EVENT_GROUP, EVENT_MASTER, EVENT_PREVIOUS_MASTER, EVENT_WHY and EVENT_AT in its environment
    #[arg(long, env = "SENTINEL_RUNNER_ON_EVENT", value_name = "COMMAND")]
    pub on_event: Option<String>,

    /// What both kinds of nodes have in common
    #[command(flatten)]
    pub join: JoinArgs,
}

/// The flags of `join`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// A Sentinel to ask beside those that have registered; may be repeated, or given as a list with commas. Of a name
    /// every address is asked
    #[arg(long, env = "SENTINELS", value_name = "HOST:PORT", value_delimiter = ',')]
    pub sentinel: Vec<Addr>,

    /// How many Sentinels there are: a majority has to agree on the master [default: what the broker expects, or else
    /// how often --sentinel was given]
    #[arg(long, env = "EXPECTED_SENTINELS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub sentinels: Option<u16>,

    /// The address at which the other nodes reach this one [default: what the broker sees, and the server's own port]
    #[arg(long, env = "ANNOUNCE", value_name = "HOST:PORT")]
    pub announce: Option<Addr>,

    /// Where to answer balancers, probes and Prometheus by HTTP, like `0.0.0.0:8008`: /primary, /replica?lag=BYTES, /ready, /live,
    /// /metrics. Anybody may ask: it tells addresses and roles, and no secrets
    #[arg(long, env = "SENTINEL_RUNNER_HEALTH", value_name = "IP:PORT")]
    pub health: Option<SocketAddr>,

    /// How the Redis servers and Sentinels are reached, this one among them
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long to wait before the server starts, where it is unclear how it should [default: for ever]
    #[arg(long, env = "PATIENCE", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub patience: Option<Duration>,

    /// How often the Sentinels are asked while it waits, and the broker where it does not wait for a change itself
    #[arg(long, env = "POLL_INTERVAL", value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub poll_interval: Duration,

    /// How long the broker or a node may take to answer
    #[arg(long, env = "COMMAND_TIMEOUT", value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,

    /// Print what would be started, and start nothing
    #[arg(long, env = "DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,

    /// The server's program and its arguments
    #[arg(last = true, required = true, value_name = "SERVER")]
    pub server: Vec<OsString>,
}

/// The flags of `bootstrap`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// The broker, and the group that is meant
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// How many Redis servers there must be, the master included [default: what the broker expects]
    #[arg(long, env = "EXPECTED_REDIS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub redis: Option<u16>,

    /// How many Sentinels there must be [default: what the broker expects]
    #[arg(long, env = "EXPECTED_SENTINELS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub sentinels: Option<u16>,

    /// How many Sentinels must agree that the master is down [default: what the broker says, or a majority of
    /// --sentinels]
    #[arg(long, env = "SENTINEL_QUORUM", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub quorum: Option<u16>,

    /// An option of SENTINEL SET for every Sentinel, like `down-after-milliseconds=5000`; may be repeated, or given as
    /// a list with commas
    #[arg(long, env = "SENTINEL_SET", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub sentinel_set: Vec<String>,

    /// A setting for every Redis server, which is written into its configuration file too: `min-replicas-to-write=1`, so that a
    /// master that is cut off takes no writes that would be lost, or `min-replicas-max-lag`; may be repeated, or given as a
    /// list with commas
    #[arg(long, env = "REDIS_SET", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub redis_set: Vec<String>,

    /// The Redis server to make the master, where the runner can't know: several hold data, say
    #[arg(long, env = "SENTINEL_MASTER", value_name = "HOST:PORT")]
    pub master: Option<Addr>,

    /// Lose the data that the other servers hold and the one named by --master does not
    #[arg(long, env = "DISCARD_DATA", value_parser = BoolishValueParser::new())]
    pub discard_data: bool,

    /// How the Redis servers and Sentinels are reached
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long the whole run may take
    #[arg(long, env = "BOOTSTRAP_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// How often nodes that are waited for are looked at; and how often the broker is asked for the roster where it does not wait for a
    /// change itself: twenty times as often just after a node has registered then, and half as often while none does
    #[arg(long, env = "POLL_INTERVAL", value_name = "TIME", default_value = "50ms", value_parser = humantime::parse_duration)]
    pub poll_interval: Duration,

    /// How long a node may take to answer a command
    #[arg(long, env = "COMMAND_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,

    /// Print the commands that would be sent, and send none
    #[arg(long, env = "DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,

    /// Print where the time went, phase by phase and node by node
    #[arg(long, env = "TIMINGS", value_parser = BoolishValueParser::new())]
    pub timings: bool,
}

/// The flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// What is looked at
    #[command(flatten)]
    pub look: LookArgs,

    /// Look again and again until stopped: a terminal is drawn anew, anything else gets a line for every change
    #[arg(long, env = "WATCH", value_parser = BoolishValueParser::new())]
    pub watch: bool,

    /// How long to wait between two looks
    #[arg(long, env = "WATCH_INTERVAL", value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub interval: Duration,
}

/// The flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// What is looked at
    #[command(flatten)]
    pub look: LookArgs,

    /// A drill: change the master as `failover` does, write all the while as a client would, and wait until the system is
    /// verified again
    ///
    /// The system has to be verified first, and to have a replica. The writes go to a key of their own,
    /// `sentinel-runner:drill`, which is deleted afterwards, and expires by itself after a minute. Clients of the system
    /// can't write for about a second; no acknowledged write is lost.
    #[arg(long, env = "FAILOVER", value_parser = BoolishValueParser::new())]
    pub failover: bool,

    /// How long the drill may take
    #[arg(long, env = "VERIFY_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// The flags of `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// What is looked at
    #[command(flatten)]
    pub look: LookArgs,

    /// The replica that is to be the master [default: whom the Sentinels choose]. Takes up to 10 s longer: its
    /// `replica-priority` is changed for a moment, and the Sentinels have to read it
    #[arg(long, env = "FAILOVER_TO", value_name = "HOST:PORT")]
    pub to: Option<Addr>,

    /// How long it may take
    #[arg(long, env = "FAILOVER_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// The flags of `roll`.
#[derive(Debug, Args)]
pub struct RollArgs {
    /// What is looked at
    #[command(flatten)]
    pub look: LookArgs,

    /// A Redis server that has been seen to already, by a run that was stopped; may be repeated, or given as a list with commas
    #[arg(long, env = "ROLL_DONE", value_name = "HOST:PORT", value_delimiter = ',')]
    pub done: Vec<Addr>,

    /// How long one server may take, once the command has ended, until the system is verified with it
    #[arg(long, env = "ROLL_TIMEOUT", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// The command and its arguments, in which `{host}` and `{port}` stand for the server; no shell reads it
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// The flags of `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// What the node is: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// Where it is registered
    #[arg(value_name = "HOST:PORT")]
    pub at: Addr,

    /// How many Sentinels must agree that the master is down, from now on [default: as it is]
    #[arg(long, env = "SENTINEL_QUORUM", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub quorum: Option<u16>,

    /// What is looked at
    #[command(flatten)]
    pub look: LookArgs,

    /// How long it may take
    #[arg(long, env = "LEAVE_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// What is needed to look at a system.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// The broker, and the group that is meant
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// How many Redis servers there must be, the master included [default: what the broker expects]
    #[arg(long, env = "EXPECTED_REDIS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub redis: Option<u16>,

    /// How many Sentinels there must be [default: what the broker expects]
    #[arg(long, env = "EXPECTED_SENTINELS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub sentinels: Option<u16>,

    /// How the Redis servers and Sentinels are reached
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long a node may take to answer a command
    #[arg(long, env = "COMMAND_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,
}

/// What `probe` takes.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// What the node is: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// Where it is [default: 127.0.0.1, and port 6379 or 26379]
    #[arg(value_name = "HOST:PORT")]
    pub at: Option<Addr>,

    /// The role that a Redis server must have
    #[arg(long, env = "SENTINEL_RUNNER_PROBE_ROLE", value_name = "ROLE", value_enum)]
    pub role: Option<ProbeRole>,

    /// It must do its part: a Redis server has loaded its data, and is a master or a replica that is linked; a Sentinel monitors a
    /// master
    #[arg(long, env = "SENTINEL_RUNNER_PROBE_READY", value_parser = BoolishValueParser::new())]
    pub ready: bool,

    /// How it is reached
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long it may take to answer
    #[arg(long, env = "COMMAND_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,
}

/// The role of a Redis server, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProbeRole {
    /// It takes writes
    Master,
    /// It follows another
    Replica,
}

/// What `register` takes.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// What the node is: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// Where it is: `HOST:PORT`, or `:PORT` at the address that the broker sees [default: that address, and port 6379
    /// or 26379]
    #[arg(value_name = "HOST:PORT")]
    pub at: Option<Where>,

    /// The broker, and the group that is meant
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// What `deregister` takes.
#[derive(Debug, Args)]
pub struct DeregisterArgs {
    /// What the node is: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// Where it is registered
    #[arg(value_name = "HOST:PORT")]
    pub at: Addr,

    /// The broker, and the group that is meant
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// Where a node is that registers: without a host, where the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Where {
    /// The host.
    pub host: Option<Host>,
    /// The port.
    pub port: NonZeroU16,
}

impl FromStr for Where {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Any host will do to have the port checked.
        let whole = if text.starts_with(':') { format!("localhost{text}") } else { text.to_owned() };
        let Addr { host, port } = whole.parse()?;
        Ok(Self { host: (whole == text).then_some(host), port })
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.as_str() == text);
    known.ok_or_else(|| "a node is `redis` or `sentinel`".to_owned())
}

/// The broker, and the group that is meant.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// Where it is
    #[command(flatten)]
    pub at: BrokerUrlArgs,

    /// The group: the Sentinel master name [default: the broker's default group]
    #[arg(long, env = "SENTINEL_GROUP", value_name = "NAME")]
    pub group: Option<Group>,
}

/// Where the broker is.
#[derive(Debug, Args)]
pub struct BrokerUrlArgs {
    /// The broker's URL, like `https://broker.example.com`
    #[arg(long, env = "BROKER_URL", value_name = "URL")]
    pub broker: String,

    /// The token that the broker asks for, if it does
    #[arg(long, env = "BROKER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A file that holds the token; it counts before --token
    #[arg(long, env = "BROKER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Who the runner says it is, and how it connects.
#[derive(Debug, Args)]
#[command(next_help_heading = "Credentials and TLS")]
pub struct AccessArgs {
    /// The ACL user on the Redis servers; Sentinels use it too
    #[arg(long, env = "REDIS_USERNAME", value_name = "NAME")]
    pub redis_username: Option<String>,

    /// The password of the Redis servers; a file is safer, because others can read a command line
    #[arg(long, env = "REDIS_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub redis_password: Option<String>,

    /// A file that holds it, and counts before the flag above
    #[arg(long, env = "REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,

    /// The ACL user on the Sentinels
    #[arg(long, env = "SENTINEL_USERNAME", value_name = "NAME")]
    pub sentinel_username: Option<String>,

    /// The password of the Sentinels
    #[arg(long, env = "SENTINEL_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub sentinel_password: Option<String>,

    /// A file that holds it, and counts before the flag above
    #[arg(long, env = "SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub sentinel_password_file: Option<PathBuf>,

    /// The ACL user that replicas use on their master [default: that of --redis-username]
    #[arg(long, env = "REPLICATION_USERNAME", value_name = "NAME")]
    pub replication_username: Option<String>,

    /// Its password [default: that of the Redis servers]
    #[arg(long, env = "REPLICATION_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub replication_password: Option<String>,

    /// A file that holds it, and counts before the flag above
    #[arg(
        long,
        env = "REPLICATION_PASSWORD_FILE",
        value_name = "FILE",
        conflicts_with = "replication_password"
    )]
    pub replication_password_file: Option<PathBuf>,

    /// Reach Redis servers and Sentinels by TLS
    #[arg(long, env = "REDIS_TLS", value_parser = BoolishValueParser::new())]
    pub tls: bool,

    /// The certificates (PEM) of who vouches for the servers [default: the system's]
    #[arg(long, env = "REDIS_TLS_CA", value_name = "FILE", requires = "tls")]
    pub tls_ca: Option<PathBuf>,

    /// The runner's own certificate (PEM)
    #[arg(long, env = "REDIS_TLS_CERT", value_name = "FILE", requires_all = ["tls", "tls_key"])]
    pub tls_cert: Option<PathBuf>,

    /// The key (PEM) of that certificate
    #[arg(long, env = "REDIS_TLS_KEY", value_name = "FILE", requires_all = ["tls", "tls_cert"])]
    pub tls_key: Option<PathBuf>,

    /// A command that the Redis servers know by another name (`rename-command`), like `CONFIG=its-other-name`; may be
    /// repeated, or given as a list with commas. Sentinels that are new to the group are told
    #[arg(
        long,
        env = "RENAME_COMMAND",
        value_name = "OLD=NEW",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub rename_command: Vec<String>,

    /// A network that may be connected to, like `10.0.0.0/8`; may be repeated, or given as a list with commas
    /// [default: all]
    #[arg(long, env = "ALLOW", value_name = "CIDR", value_delimiter = ',')]
    pub allow: Vec<IpNet>,
}

/// The part of `--help` about exit codes; `error` defines them, and a test compares the two.
const EXIT_CODES: &str = "\
Exit codes:
  0  the system is configured and verified, or was so already
  1  anything else
  2  a flag, or an environment variable, is wrong
  3  out of time: not enough usable nodes have registered, or something that has to pass first did not; with `join`:
     it was unclear for longer than --patience how the server should start, and it was not started
  4  refused: it would lose data, or contradict the Sentinels
  5  a node can't be used as it is (authentication, protected mode, unwritable Sentinel file, wrong mode)
  6  not verified: the system is not, or not in time, what it should be
  7  the broker can't be reached, or refuses the token
  130, 143  stopped by SIGINT, SIGTERM
`join` ends with the server's own exit code once that has been started, or with 128 and the signal that ended it.";

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_every_command_is_an_environment_variable() {
        fn check(command: &clap::Command) -> usize {
            for argument in command.get_opts() {
                assert!(argument.get_env().is_some(), "{}: {argument}", command.get_name());
            }
            command.get_opts().count() + command.get_subcommands().map(check).sum::<usize>()
        }
        assert!(check(&Cli::command()) > 50);
    }

    #[test]
    fn every_variable_that_holds_a_secret_is_known() {
        let known = secret_variables();
        for name in
            ["BROKER_TOKEN", "REDIS_PASSWORD", "SENTINEL_PASSWORD", "REPLICATION_PASSWORD", "RENAME_COMMAND"]
        {
            assert!(known.contains(&OsString::from(name)), "{name}: {known:?}");
        }
        assert_eq!(known.len(), 5, "{known:?}");
    }

    #[test]
    fn a_node_registers_by_host_and_port_or_by_its_port() {
        let at = |text: &str| {
            text.parse::<Where>().map(|at| (at.host.map(|host| host.to_string()), at.port.get()))
        };
        assert_eq!(at("10.0.0.7:6380").unwrap(), (Some("10.0.0.7".into()), 6380));
        assert_eq!(at("[fd00::7]:6380").unwrap(), (Some("fd00::7".into()), 6380));
        assert_eq!(at(":6380").unwrap(), (None, 6380));
        for bad in ["", ":", "6380", "10.0.0.7", ":0", "a b:1"] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_typed_wrong_is_known_to_be_for_a_machine() {
        let read = |words: &[&str]| {
            let words = ["sentinel-runner"].iter().chain(words).map(OsString::from);
            Cli::read(words).map(drop).map_err(|wrong| (wrong.command, wrong.json))
        };
        let wrong = |command, json| Err((command, json));
        assert_eq!(read(&["status", "--nonsense", "--output", "json"]), wrong(CommandName::Status, true));
        assert_eq!(read(&["--output=json", "verify", "--nonsense"]), wrong(CommandName::Verify, true));
        assert_eq!(read(&["--output=text", "--output", "json"]), wrong(CommandName::None, true));
        assert_eq!(read(&["register", "nonsense"]), wrong(CommandName::Register, false));
        assert_eq!(read(&["register", "redis", "--broker", "http://b", "-q"]), Ok(()));
    }

    /// Every command's `--help`, as a page.
    fn page() -> String {
        // Without the values that the variables have where this runs.
        fn plain(command: clap::Command) -> clap::Command {
            let command = command.mut_args(|argument| argument.hide_env_values(true)).term_width(100);
            command.mut_subcommands(plain)
        }
        fn add(command: &mut clap::Command, depth: usize, page: &mut String) {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            let help = command.render_long_help().to_string();
            let help: Vec<_> = help.lines().map(str::trim_end).collect();
            let level = "#".repeat(depth + 2);
            *page += &format!("\n{level} `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end());
            for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
                add(command, depth.min(1), page);
            }
        }
        let mut cli = plain(Cli::command().color(ColorChoice::Never));
        cli.build();
        let mut page = "# The commands of `sentinel-runner`\n\n\
            What each says to `--help`. Generated from `runner/src/cli.rs`; `UPDATE_EXPECT=1 cargo test -p runner cli` writes it \
            anew.\n"
            .to_owned();
        add(&mut cli, 0, &mut page);
        page
    }

    #[test]
    fn the_page_of_commands_is_what_the_program_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        expect_file![path].assert_eq(&page());
    }

    #[test]
    fn help_lists_every_exit_code() {
        for code in crate::outcome::exit_code::ALL {
            let listed =
                EXIT_CODES.split_whitespace().any(|word| word.trim_end_matches(',') == code.to_string());
            assert!(listed, "{code}");
        }
    }
}
