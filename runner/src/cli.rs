//! The command line's definition. All other code uses the settings that `config` resolves from it.

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
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use ipnet::IpNet;

use crate::outcome::exit_code;
use crate::report::document::CommandName;
use crate::report::style::ColourChoice;
use crate::report::{LogFormat, Output, ReportSettings};

/// Turns Redis servers and Sentinels that have registered with a broker into one verified high-availability
/// system.
#[derive(Debug, Parser)]
#[command(name = "sentinel-runner", version, after_help = exit_codes())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,

    /// What is shown, and how
    #[command(flatten)]
    pub show: ShowArgs,

    /// Warnings about variables that have another name now
    #[arg(skip)]
    pub old_variables: Vec<String>,
}

/// What is shown, and how: the same for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct ShowArgs {
    /// What to write to standard output: text for people, or one JSON document, also if the command fails
    /// (docs/output.md); for `status` also metrics or addresses
    #[arg(long, env = "SENTINEL_RUNNER_OUTPUT", global = true, value_enum, default_value_t)]
    pub output: Output,

    /// What to write to standard error: text for people, or one JSON object per line
    #[arg(
        long,
        env = "SENTINEL_RUNNER_LOG_FORMAT",
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub log_format: LogFormat,

    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        env = "SENTINEL_RUNNER_COLOR",
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t
    )]
    pub color: ColourChoice,

    /// Print only warnings and errors
    #[arg(short, long, env = "SENTINEL_RUNNER_QUIET", global = true, conflicts_with = "verbose", value_parser = BoolishValueParser::new())]
    pub quiet: bool,

    /// Print every command to a node and its reply, without secrets
    #[arg(short, long, env = "SENTINEL_RUNNER_VERBOSE", global = true, value_parser = BoolishValueParser::new())]
    pub verbose: bool,
}

impl ShowArgs {
    /// The settings for the report.
    #[must_use]
    pub fn settings(&self) -> ReportSettings {
        let Self { output, log_format, color, quiet, verbose } = *self;
        ReportSettings { output, log: log_format, colour: color, quiet, verbose, lasts: true }
    }
}

/// A command line that can't be run, or that asks for help.
#[derive(Debug)]
pub struct Wrong {
    /// clap's error, or its help text.
    pub error: clap::Error,
    /// The command, if the command line contains one.
    pub command: CommandName,
    /// Whether the command line asks for a JSON document.
    pub json: bool,
}

impl Cli {
    /// Reads the command line, which begins with the program's name.
    ///
    /// # Errors
    ///
    /// If the command line is wrong, or asks for help.
    pub fn read(typed: impl IntoIterator<Item = OsString>) -> Result<Self, Box<Wrong>> {
        let typed: Vec<OsString> = typed.into_iter().collect();
        let own = typed.iter().skip(1).take_while(|word| *word != "--");
        let text: Vec<_> = own.map(|word| word.to_string_lossy()).collect();
        // `--color` and `--output` determine how an error is printed, so they are needed before clap has read
        // the command line.
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
        let mut cli = read_old_variables(Self::command()).color(colour);
        let read = cli.try_get_matches_from_mut(&typed).and_then(|matches| {
            let old_variables = old_variables(&cli, &matches);
            Self::from_arg_matches(&matches).map(|read| Self { old_variables, ..read })
        });
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

/// The prefix of this program's own variables.
const PREFIX: &str = "SENTINEL_RUNNER_";

/// The variables that had no prefix up to 0.1: their old names are still read.
const OLD_VARIABLES: [&str; 18] = [
    "ALLOW",
    "BOOTSTRAP_TIMEOUT",
    "COMMAND_TIMEOUT",
    "DRY_RUN",
    "FAILOVER_TIMEOUT",
    "FAILOVER_TO",
    "HANDOVER",
    "LEAVE_TIMEOUT",
    "PATIENCE",
    "POLL_INTERVAL",
    "RENAME_COMMAND",
    "ROLL_DONE",
    "ROLL_TIMEOUT",
    "TIMINGS",
    "VERBOSE",
    "VERIFY_TIMEOUT",
    "WATCH",
    "WATCH_INTERVAL",
];

/// The variables whose old names are no longer read. Another program may use the same name, and its variable
/// must neither change the master nor delete data.
const UNREAD_VARIABLES: [&str; 3] = ["CACHE", "DISCARD_DATA", "FAILOVER"];

/// The variable of an argument by its old name, if it has one.
fn old_name(argument: &clap::Arg) -> Option<&'static str> {
    let name = argument.get_env()?.to_str()?.strip_prefix(PREFIX)?;
    OLD_VARIABLES.into_iter().find(|old| *old == name)
}

/// A variable that is set to nothing is not set.
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// If the variable of an argument is not set, the argument reads the variable of the old name.
fn read_old_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|argument| match old_name(&argument) {
        Some(old) if !is_set(&format!("{PREFIX}{old}")) && is_set(old) => argument.env(old),
        _ => argument,
    });
    command.mut_subcommands(read_old_variables)
}

/// The warnings about old names: one for each that was read, and one for each that is set but not read.
fn old_variables(command: &clap::Command, matches: &ArgMatches) -> Vec<String> {
    let from_variable = |argument: &&clap::Arg| {
        matches.value_source(argument.get_id().as_str()) == Some(ValueSource::EnvVariable)
    };
    let read =
        command.get_arguments().filter(from_variable).filter_map(|argument| argument.get_env()?.to_str());
    let old = read.filter(|name| OLD_VARIABLES.contains(name));
    let mut warnings: Vec<String> = old
        .map(|old| format!("the variable {old} is now {PREFIX}{old}; the old name is read until 0.2"))
        .collect();
    warnings.extend(command.get_arguments().filter_map(|argument| {
        let old = argument.get_env()?.to_str()?.strip_prefix(PREFIX)?;
        let is_ignored = UNREAD_VARIABLES.contains(&old) && is_set(old);
        is_ignored.then(|| {
            let flag = argument.get_long().unwrap_or_default();
            format!("the variable {old} is not read any more; {PREFIX}{old} is, or --{flag}")
        })
    }));
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        let known = warnings.clone();
        warnings.extend(old_variables(command, matches).into_iter().filter(|new| !known.contains(new)));
    }
    warnings
}

/// The variables that contain secrets: those whose values the help hides.
#[must_use]
pub fn secret_variables() -> BTreeSet<OsString> {
    fn of(command: &clap::Command) -> BTreeSet<OsString> {
        let secret = command.get_arguments().filter(|argument| argument.is_hide_env_values_set());
        let names = |argument: &clap::Arg| {
            let name = argument.get_env().map(OsString::from);
            name.into_iter().chain(old_name(argument).map(OsString::from)).collect::<Vec<_>>()
        };
        let own = secret.flat_map(names);
        own.chain(command.get_subcommands().flat_map(of)).collect()
    }
    of(&Cli::command())
}

impl CliCommand {
    /// The name of the command.
    #[must_use]
    pub fn name(&self) -> CommandName {
        match self {
            Self::Bootstrap(_) => CommandName::Bootstrap,
            Self::Status(_) => CommandName::Status,
            Self::Verify(_) => CommandName::Verify,
            Self::Failover(_) => CommandName::Failover,
            Self::Roll(_) => CommandName::Roll,
            Self::Rotate(_) => CommandName::Rotate,
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
    /// You can run this at any time: on a healthy system it changes nothing.
    #[command(after_help = exit_codes())]
    Bootstrap(BootstrapArgs),

    /// Show the broker's roster and what the servers answer; changes nothing
    ///
    /// The exit code is 0 only if the system is verified. Otherwise the command prints what keeps the system
    /// from being verified.
    #[command(after_help = exit_codes())]
    Status(StatusArgs),

    /// Check once that the system is verified; with --failover, also change the master and measure it
    #[command(after_help = exit_codes())]
    Verify(VerifyArgs),

    /// Make another Redis server the master without losing an acknowledged write
    ///
    /// The command pauses writes, waits until the replicas have received the whole stream, has a Sentinel
    /// fail over, attaches the old master to the new one, and waits until the system is verified. Clients
    /// can't write for about a second. The system has to be verified first.
    #[command(after_help = exit_codes())]
    Failover(FailoverArgs),

    /// Run a command for each Redis server, one after the other: the replicas first, the old master last
    ///
    /// For restarts and upgrades: `roll --broker URL -- ssh root@{host} systemctl restart
    /// sentinel-broker-redis@{port}`. The master hands over before its turn. After each server the command
    /// waits until the system is verified again, including that server. It stops at the first failure, and
    /// prints how to continue.
    #[command(after_help = exit_codes())]
    Roll(RollArgs),

    /// Change the password of an ACL user on all Redis servers, their replicas and the Sentinels
    ///
    /// First every server accepts the new password beside the old one. Then the replicas (`masterauth`) and
    /// the Sentinels (`auth-pass`) use the new password, and the system is verified with it. Then you give
    /// the new password to clients and to every `join`: on a terminal the command waits for your answer; in a
    /// script run it twice, first with --keep-old, then with --drop-old. Last, the servers drop the old
    /// password. No connection is closed. If the command is killed, run it again; keep both password files
    /// until it has ended.
    #[command(after_help = exit_codes())]
    Rotate(RotateArgs),

    /// Remove a Redis server or a Sentinel from the system permanently
    ///
    /// A master hands over first. Then a Redis server becomes read-only, or a Sentinel stops monitoring the
    /// group. The node is deregistered, and the Sentinels forget it, one after the other. The server itself
    /// keeps running: stop it afterwards. If fewer nodes are left than the broker expects, set the new number
    /// with --redis or --sentinels.
    #[command(after_help = exit_codes())]
    Leave(LeaveArgs),

    /// Check one Redis server or Sentinel once: the exit code is 0 if the check succeeds, otherwise 1
    ///
    /// For Docker's HEALTHCHECK, and for probes that can't use `join --health` over HTTP. The command asks
    /// this node only, and changes nothing.
    #[command(after_help = exit_codes())]
    Probe(ProbeArgs),

    /// Register a Redis server or a Sentinel with the broker, or renew its registration
    #[command(after_help = exit_codes())]
    Register(RegisterArgs),

    /// Remove a Redis server or a Sentinel from the broker; the server itself is not touched
    #[command(after_help = exit_codes())]
    Deregister(DeregisterArgs),

    /// Start a Redis server or a Sentinel in its current role, and register it
    ///
    /// `join` asks the Sentinels before it starts the server. The server starts as a replica of the master
    /// that the Sentinels report. If no Sentinel knows a system, a Redis server starts held: it takes no
    /// writes. If the role is unclear, `join` waits and prints what it waits for. `join` passes signals on to
    /// the server, and ends with the server's exit code.
    #[command(subcommand, after_help = exit_codes())]
    Join(JoinNode),
}

/// What `join` starts.
#[derive(Debug, Subcommand)]
pub enum JoinNode {
    /// Start a Redis server: `join redis --broker URL -- redis-server /etc/redis/redis.conf`
    #[command(after_help = exit_codes())]
    Redis(JoinRedisArgs),

    /// Start a Sentinel: `join sentinel --broker URL -- redis-sentinel /var/lib/redis/sentinel.conf`
    ///
    /// A missing configuration file is created, and its folder too.
    #[command(after_help = exit_codes())]
    Sentinel(JoinSentinelArgs),
}

/// The flags of `join sentinel`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct JoinSentinelArgs {
    /// The broker
    #[command(flatten)]
    pub broker: BrokerUrlArgs,

    /// The group whose master this Sentinel monitors; repeat the flag, or give a list with commas, for
    /// several groups [default: the broker's default group]
    #[arg(long, env = "SENTINEL_GROUP", value_name = "NAME", value_delimiter = ',')]
    pub group: Vec<Group>,

    /// The flags of both kinds of nodes
    #[command(flatten)]
    pub join: JoinArgs,
}

/// The flags of `join redis`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct JoinRedisArgs {
    /// The broker and the group
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// Delete the data on this node's disk if the node becomes a replica and no Sentinel knows it as a member
    /// of the system; the master's data replaces it. For one start only: never put the variable into an
    /// environment file
    #[arg(long, env = "SENTINEL_RUNNER_DISCARD_DATA", value_parser = BoolishValueParser::new())]
    pub discard_data: bool,

    /// The server is a cache: if the Sentinels report it as the master and no node has data any more, start
    /// it empty as the master; do not wait for a node with data
    #[arg(long, env = "SENTINEL_RUNNER_CACHE", value_parser = BoolishValueParser::new())]
    pub cache: bool,

    /// How long a master may take to hand over to a replica when `join` gets SIGTERM or SIGINT; after that
    /// time `join` stops the server without a handover. 0s: stop the server at once
    #[arg(long, env = "SENTINEL_RUNNER_HANDOVER", value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub handover: Duration,

    /// A command that /bin/sh runs when this server is promoted, demoted, fenced or unfenced, and when a
    /// failover begins and ends. It runs once per event, with EVENT, EVENT_NODE, EVENT_GROUP, EVENT_MASTER,
    /// EVENT_PREVIOUS_MASTER, EVENT_WHY and EVENT_AT in its environment
    #[arg(long, env = "SENTINEL_RUNNER_ON_EVENT", value_name = "COMMAND")]
    pub on_event: Option<String>,

    /// The flags of both kinds of nodes
    #[command(flatten)]
    pub join: JoinArgs,
}

/// The flags of `join`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// A Sentinel to ask in addition to the registered ones; repeat the flag, or give a list with commas.
    /// Every address of a host name is asked
    #[arg(long, env = "SENTINELS", value_name = "HOST:PORT", value_delimiter = ',')]
    pub sentinel: Vec<Addr>,

    /// How many Sentinels there are: a majority of this number has to agree on the master [default: what the
    /// broker expects, or the number that the Sentinels know, if that is larger]
    #[arg(long, env = "EXPECTED_SENTINELS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub sentinels: Option<u16>,

    /// The address at which the other nodes reach this node [default: the address that the broker sees, and
    /// the server's own port]
    #[arg(long, env = "ANNOUNCE", value_name = "HOST:PORT")]
    pub announce: Option<Addr>,

    /// The address for balancers, probes and Prometheus (HTTP), like `0.0.0.0:8008`: /primary,
    /// /replica?lag=BYTES, /readable, /ready, /live, /metrics. No login is needed: the answers contain
    /// addresses and roles, and no secrets
    #[arg(long, env = "SENTINEL_RUNNER_HEALTH", value_name = "IP:PORT")]
    pub health: Option<SocketAddr>,

    /// How to reach the Redis servers and Sentinels, including this node
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long to wait while the server's role is unclear; after that `join` ends without starting the
    /// server [default: forever]
    #[arg(long, env = "SENTINEL_RUNNER_PATIENCE", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub patience: Option<Duration>,

    /// How often `join` asks the Sentinels while it waits, and the broker, if the broker can't wait for a
    /// change
    #[arg(long, env = "SENTINEL_RUNNER_POLL_INTERVAL", value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub poll_interval: Duration,

    /// How long the broker or a node may take to answer
    #[arg(long, env = "SENTINEL_RUNNER_COMMAND_TIMEOUT", value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,

    /// Print what would be started, without secrets, and start nothing
    #[arg(long, env = "SENTINEL_RUNNER_DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,

    /// The server's program and its arguments
    #[arg(last = true, required = true, value_name = "SERVER")]
    pub server: Vec<OsString>,
}

/// The flags of `bootstrap`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// The broker and the group
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// How many Redis servers there must be, including the master [default: what the broker expects]
    #[arg(long, env = "EXPECTED_REDIS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub redis: Option<u16>,

    /// How many Sentinels there must be [default: what the broker expects]
    #[arg(long, env = "EXPECTED_SENTINELS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub sentinels: Option<u16>,

    /// How many Sentinels must agree that the master is down [default: the broker's quorum, or a majority of
    /// --sentinels]
    #[arg(long, env = "SENTINEL_QUORUM", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub quorum: Option<u16>,

    /// An option of SENTINEL SET for every Sentinel, like `down-after-milliseconds=5000`; repeat the flag, or
    /// give a list with commas
    #[arg(long, env = "SENTINEL_SET", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub sentinel_set: Vec<String>,

    /// A setting for every Redis server, also written into its configuration file: `min-replicas-to-write` or
    /// `min-replicas-max-lag`. With `min-replicas-to-write=1` a master that is cut off soon rejects writes,
    /// which would be lost. Repeat the flag, or give a list with commas
    #[arg(long, env = "REDIS_SET", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub redis_set: Vec<String>,

    /// The Redis server that becomes the master if the runner can't decide, for example because several
    /// servers hold data
    #[arg(long, env = "SENTINEL_MASTER", value_name = "HOST:PORT")]
    pub master: Option<Addr>,

    /// Delete the data of every server but the server of --master, also keys that only the other servers have
    #[arg(long, env = "SENTINEL_RUNNER_DISCARD_DATA", value_parser = BoolishValueParser::new())]
    pub discard_data: bool,

    /// How to reach the Redis servers and Sentinels
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long the whole run may take
    #[arg(long, env = "SENTINEL_RUNNER_BOOTSTRAP_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// How often to check nodes that the run waits for, and how often to ask the broker for the roster if the
    /// broker can't wait for a change (up to twenty times as often just after a registration, half as often
    /// while no node registers)
    #[arg(long, env = "SENTINEL_RUNNER_POLL_INTERVAL", value_name = "TIME", default_value = "50ms", value_parser = humantime::parse_duration)]
    pub poll_interval: Duration,

    /// How long a node may take to answer a command
    #[arg(long, env = "SENTINEL_RUNNER_COMMAND_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,

    /// Print the commands that would be sent, and send none
    #[arg(long, env = "SENTINEL_RUNNER_DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,

    /// Print how long each phase and each node took
    #[arg(long, env = "SENTINEL_RUNNER_TIMINGS", value_parser = BoolishValueParser::new())]
    pub timings: bool,
}

/// The flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The system to look at
    #[command(flatten)]
    pub look: LookArgs,

    /// Check again and again until stopped: redraw a terminal, or print a line for every change
    #[arg(long, env = "SENTINEL_RUNNER_WATCH", value_parser = BoolishValueParser::new())]
    pub watch: bool,

    /// How long to wait between two checks
    #[arg(long, env = "SENTINEL_RUNNER_WATCH_INTERVAL", value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub interval: Duration,
}

/// The flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The system to look at
    #[command(flatten)]
    pub look: LookArgs,

    /// Change the master as `failover` does while a client writes, count its lost writes, and wait until the
    /// system is verified again
    ///
    /// The system has to be verified and to have a replica. The client writes to its own key,
    /// `sentinel-runner:drill`, which is deleted afterwards and expires after a minute. Clients of the system
    /// can't write for about a second; no acknowledged write is lost.
    #[arg(long, env = "SENTINEL_RUNNER_FAILOVER", value_parser = BoolishValueParser::new())]
    pub failover: bool,

    /// How long the failover may take
    #[arg(long, env = "SENTINEL_RUNNER_VERIFY_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// The flags of `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The system to look at
    #[command(flatten)]
    pub look: LookArgs,

    /// The replica to promote [default: the Sentinels choose]. This usually takes up to 10 s longer, and 25 s
    /// at most: every Sentinel has to read the replica's `replica-priority`, which is changed for a moment
    #[arg(long, env = "SENTINEL_RUNNER_FAILOVER_TO", value_name = "HOST:PORT")]
    pub to: Option<Addr>,

    /// How long the command may take
    #[arg(long, env = "SENTINEL_RUNNER_FAILOVER_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// The flags of `roll`.
#[derive(Debug, Args)]
pub struct RollArgs {
    /// The system to look at
    #[command(flatten)]
    pub look: LookArgs,

    /// A Redis server that an earlier run has already done: skip it; repeat the flag, or give a list with
    /// commas
    #[arg(long, env = "SENTINEL_RUNNER_ROLL_DONE", value_name = "HOST:PORT", value_delimiter = ',')]
    pub done: Vec<Addr>,

    /// How long to wait after the command for each server until the system is verified again
    #[arg(long, env = "SENTINEL_RUNNER_ROLL_TIMEOUT", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// The command and its arguments; `{host}` and `{port}` stand for the server's address. It is not run by
    /// a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// The flags of `rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// A file that contains the new password
    #[arg(long, env = "SENTINEL_RUNNER_ROTATE_NEW_PASSWORD_FILE", value_name = "FILE")]
    pub new_password_file: PathBuf,

    /// The ACL user on the Redis servers whose password is changed [default: that of --redis-username, or
    /// `default`]
    #[arg(long, env = "SENTINEL_RUNNER_ROTATE_USER", value_name = "NAME")]
    pub user: Option<String>,

    /// A file that contains the user's present password [default: the password of --redis-username or
    /// --replication-username, if that is the user]
    #[arg(long, env = "SENTINEL_RUNNER_ROTATE_OLD_PASSWORD_FILE", value_name = "FILE")]
    pub old_password_file: Option<PathBuf>,

    /// Stop when the servers accept both passwords, and replicas and Sentinels use the new one
    #[arg(long, env = "SENTINEL_RUNNER_ROTATE_KEEP_OLD", conflicts_with = "drop_old", value_parser = BoolishValueParser::new())]
    pub keep_old: bool,

    /// Drop the old password without asking: from then on logins with it are refused
    #[arg(long, env = "SENTINEL_RUNNER_ROTATE_DROP_OLD", value_parser = BoolishValueParser::new())]
    pub drop_old: bool,

    /// The system to look at
    #[command(flatten)]
    pub look: LookArgs,

    /// How long each of the two parts may take; the time of waiting for your answer does not count
    #[arg(long, env = "SENTINEL_RUNNER_ROTATE_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// The flags of `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// The kind of node: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// The node's registered address
    #[arg(value_name = "HOST:PORT")]
    pub at: Addr,

    /// The new quorum: how many Sentinels must agree that the master is down [default: unchanged]
    #[arg(long, env = "SENTINEL_QUORUM", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub quorum: Option<u16>,

    /// The system to look at
    #[command(flatten)]
    pub look: LookArgs,

    /// How long the command may take
    #[arg(long, env = "SENTINEL_RUNNER_LEAVE_TIMEOUT", value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// The flags of commands that look at a system.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// The broker and the group
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// How many Redis servers there must be, including the master [default: what the broker expects]
    #[arg(long, env = "EXPECTED_REDIS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub redis: Option<u16>,

    /// How many Sentinels there must be [default: what the broker expects]
    #[arg(long, env = "EXPECTED_SENTINELS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub sentinels: Option<u16>,

    /// How to reach the Redis servers and Sentinels
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long a node may take to answer a command
    #[arg(long, env = "SENTINEL_RUNNER_COMMAND_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,
}

/// What `probe` takes.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The kind of node: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// The node's address [default: 127.0.0.1, and port 6379 or 26379]
    #[arg(value_name = "HOST:PORT")]
    pub at: Option<Addr>,

    /// The role that the Redis server must have
    #[arg(long, env = "SENTINEL_RUNNER_PROBE_ROLE", value_name = "ROLE", value_enum)]
    pub role: Option<ProbeRole>,

    /// Also check that a Redis server has loaded its data, and is a master or a replica with a link to its
    /// master, or that a Sentinel monitors a master
    #[arg(long, env = "SENTINEL_RUNNER_PROBE_READY", value_parser = BoolishValueParser::new())]
    pub ready: bool,

    /// How to reach the node
    #[command(flatten)]
    pub access: AccessArgs,

    /// How long the node may take to answer
    #[arg(long, env = "SENTINEL_RUNNER_COMMAND_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub command_timeout: Duration,
}

/// The role of a Redis server, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProbeRole {
    /// The server takes writes
    Master,
    /// The server follows another server
    Replica,
}

/// What `register` takes.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// The kind of node: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// The node's address: `HOST:PORT`, or `:PORT` at the address that the broker sees [default: that
    /// address, and port 6379 or 26379]
    #[arg(value_name = "HOST:PORT")]
    pub at: Option<Where>,

    /// The broker and the group
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// What `deregister` takes.
#[derive(Debug, Args)]
pub struct DeregisterArgs {
    /// The kind of node: `redis` or `sentinel`
    #[arg(value_name = "KIND", value_parser = kind)]
    pub kind: Kind,

    /// The node's registered address
    #[arg(value_name = "HOST:PORT")]
    pub at: Addr,

    /// The broker and the group
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// The address of a node that registers. Without a host, the broker uses the address that it sees.
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
        // `Addr` checks the port, but only together with a host.
        let whole = if text.starts_with(':') { format!("localhost{text}") } else { text.to_owned() };
        let Addr { host, port } = whole.parse()?;
        Ok(Self { host: (whole == text).then_some(host), port })
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.as_str() == text);
    known.ok_or_else(|| "a node is `redis` or `sentinel`".to_owned())
}

/// The broker and the group.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// The broker's address
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

    /// The broker's token, if it has one
    #[arg(long, env = "BROKER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A file that contains the token; takes precedence over --token
    #[arg(long, env = "BROKER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Logins and TLS.
#[derive(Debug, Args)]
#[command(next_help_heading = "Credentials and TLS")]
pub struct AccessArgs {
    /// The ACL user on the Redis servers, for the runner and for the Sentinels
    #[arg(long, env = "REDIS_USERNAME", value_name = "NAME")]
    pub redis_username: Option<String>,

    /// The password of that user; a file is safer, because other users can read a command line
    #[arg(long, env = "REDIS_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub redis_password: Option<String>,

    /// A file that contains the password; takes precedence over the flag above
    #[arg(long, env = "REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,

    /// The ACL user on the Sentinels
    #[arg(long, env = "SENTINEL_USERNAME", value_name = "NAME")]
    pub sentinel_username: Option<String>,

    /// The password of that user, or of Sentinels without ACL users
    #[arg(long, env = "SENTINEL_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub sentinel_password: Option<String>,

    /// A file that contains the password; takes precedence over the flag above
    #[arg(long, env = "SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub sentinel_password_file: Option<PathBuf>,

    /// The ACL user that replicas use on their master [default: that of --redis-username]
    #[arg(long, env = "REPLICATION_USERNAME", value_name = "NAME")]
    pub replication_username: Option<String>,

    /// The password of that user [default: that of --redis-username]
    #[arg(long, env = "REPLICATION_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub replication_password: Option<String>,

    /// A file that contains the password; takes precedence over the flag above
    #[arg(long, env = "REPLICATION_PASSWORD_FILE", value_name = "FILE")]
    pub replication_password_file: Option<PathBuf>,

    /// Connect to Redis servers and Sentinels with TLS
    #[arg(long, env = "REDIS_TLS", value_parser = BoolishValueParser::new())]
    pub tls: bool,

    /// CA certificates (PEM) used to verify the servers [default: the system's]
    #[arg(long, env = "REDIS_TLS_CA", value_name = "FILE", requires = "tls")]
    pub tls_ca: Option<PathBuf>,

    /// The client certificate (PEM) of the runner
    #[arg(long, env = "REDIS_TLS_CERT", value_name = "FILE", requires_all = ["tls", "tls_key"])]
    pub tls_cert: Option<PathBuf>,

    /// The key (PEM) of that certificate
    #[arg(long, env = "REDIS_TLS_KEY", value_name = "FILE", requires_all = ["tls", "tls_cert"])]
    pub tls_key: Option<PathBuf>,

    /// A command that the Redis servers have renamed (`rename-command`), like `CONFIG=its-other-name`; repeat
    /// the flag, or give a list with commas. The runner uses the new names. `bootstrap` sets them on every
    /// Sentinel
    #[arg(
        long,
        env = "SENTINEL_RUNNER_RENAME_COMMAND",
        value_name = "OLD=NEW",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub rename_command: Vec<String>,

    /// A network that the runner may connect to, like `10.0.0.0/8`; repeat the flag, or give a list with
    /// commas [default: all]
    #[arg(long, env = "SENTINEL_RUNNER_ALLOW", value_name = "CIDR", value_delimiter = ',')]
    pub allow: Vec<IpNet>,
}

/// The part of `--help` about exit codes.
fn exit_codes() -> String {
    // The width of the help on a wide terminal.
    let options = |indent: &'static str| textwrap::Options::new(100).subsequent_indent(indent);
    let codes = exit_code::MEANINGS
        .map(|(code, meaning)| textwrap::fill(&format!("{code:>5}  {meaning}"), options("       ")));
    format!("Exit codes:\n{}\n{}", codes.join("\n"), textwrap::fill(exit_code::OF_JOIN, options("")))
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_boolean_variable_takes_the_same_words() {
        fn check(command: &clap::Command) -> usize {
            let booleans = command.get_opts().filter(|argument| !argument.get_action().takes_values());
            let booleans: Vec<&clap::Arg> =
                booleans.filter(|argument| argument.get_env().is_some()).collect();
            for argument in &booleans {
                let parser = argument.get_value_parser();
                let words = parser.possible_values().into_iter().flatten();
                let words: Vec<String> = words.map(|word| word.get_name().to_owned()).collect();
                for word in ["yes", "on", "true", "1", "no", "off", "false", "0"] {
                    assert!(words.iter().any(|one| one == word), "{}: {argument}", command.get_name());
                }
            }
            booleans.len() + command.get_subcommands().map(check).sum::<usize>()
        }
        assert!(check(&Cli::command()) > 10);
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
        let passwords = ["BROKER_TOKEN", "REDIS_PASSWORD", "SENTINEL_PASSWORD", "REPLICATION_PASSWORD"];
        for name in passwords.into_iter().chain(["SENTINEL_RUNNER_RENAME_COMMAND", "RENAME_COMMAND"]) {
            assert!(known.contains(&OsString::from(name)), "{name}: {known:?}");
        }
        assert_eq!(known.len(), 6, "{known:?}");
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
    fn the_flags_of_a_wrong_command_line_are_known() {
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
        // The page must not contain the values of this machine's variables.
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
            What each prints with `--help`. Generated from `runner/src/cli.rs`; `UPDATE_EXPECT=1 cargo test \
            -p runner cli` writes it anew.\n"
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
    fn the_page_of_exit_codes_is_what_the_program_means() {
        let rows = exit_code::MEANINGS.map(|(code, meaning)| format!("| {code} | {meaning} |\n"));
        let of_join = exit_code::OF_JOIN;
        let page = format!(
            "# Exit codes of `sentinel-runner`\n\nGenerated from `runner/src/outcome.rs`; `UPDATE_EXPECT=1 \
             cargo test -p runner cli` writes it anew. With `--output json`, the document's field `outcome` is more precise: [output.md](output.md).\n\n\
             | code | meaning |\n| --- | --- |\n{}| any | {of_join} |\n",
            rows.concat()
        );
        expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/exit-codes.md")].assert_eq(&page);
    }
}
