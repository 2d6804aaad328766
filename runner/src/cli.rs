//! What the user types. Everything after it works on [`crate::config::Config`].

use std::path::PathBuf;
use std::time::Duration;

use broker_fn::api::{Addr, Group};
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

/// Turns Redis servers and Sentinels that have registered with a broker into one verified high-availability system.
#[derive(Debug, Parser)]
#[command(name = "sentinel-runner", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Wait until the expected nodes have registered, make them one system, verify it, and exit
    ///
    /// May be run again at any time: on a healthy system it changes nothing.
    #[command(after_help = EXIT_CODES)]
    Bootstrap(Bootstrap),
}

/// The flags of `bootstrap`, each of which is an environment variable as well.
#[derive(Debug, Args)]
pub struct Bootstrap {
    /// The broker, and the group that is meant
    #[command(flatten)]
    pub broker: Broker,

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

    /// The Redis server to make the master, where the runner can't know: several hold data, say
    #[arg(long, env = "SENTINEL_MASTER", value_name = "HOST:PORT")]
    pub master: Option<Addr>,

    /// Lose the data that the other servers hold and the one named by --master does not
    #[arg(long, env = "DISCARD_DATA", value_parser = BoolishValueParser::new())]
    pub discard_data: bool,

    /// How the Redis servers and Sentinels are reached
    #[command(flatten)]
    pub access: Access,

    /// How long the whole run may take
    #[arg(long, env = "BOOTSTRAP_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// How often the broker is asked for the roster; five times as often just after a node has registered, and half as
    /// often while none does
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

    /// Show every command and its reply
    #[arg(short, long, env = "VERBOSE", value_parser = BoolishValueParser::new())]
    pub verbose: bool,
}

/// The broker, and the group that is meant.
#[derive(Debug, Args)]
pub struct Broker {
    /// The broker's URL, like `https://broker.example.com`
    #[arg(long, env = "BROKER_URL", value_name = "URL")]
    pub broker: String,

    /// The token that the broker asks for, if it does
    #[arg(long, env = "BROKER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A file that holds the token; it counts before --token
    #[arg(long, env = "BROKER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// The group: the Sentinel master name [default: the broker's default group]
    #[arg(long, env = "SENTINEL_GROUP", value_name = "NAME")]
    pub group: Option<Group>,
}

/// Who the runner says it is, and how it connects.
#[derive(Debug, Args)]
#[command(next_help_heading = "Credentials and TLS")]
pub struct Access {
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
  3  out of time: not enough usable nodes have registered, or something that has to pass first did not
  4  refused: it would lose data, or contradict the Sentinels
  5  a node can't be used as it is (authentication, protected mode, unwritable Sentinel file, wrong mode)
  6  configured, but not verified in time
  7  the broker can't be reached, or refuses the token
  130, 143  stopped by SIGINT, SIGTERM";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_bootstrap_is_an_environment_variable() {
        let command = Cli::command();
        let bootstrap = command.find_subcommand("bootstrap").unwrap();
        for argument in bootstrap.get_arguments() {
            assert!(argument.get_env().is_some(), "{argument}");
        }
    }

    #[test]
    fn help_lists_every_exit_code() {
        for code in crate::error::exit_code::ALL {
            let listed =
                EXIT_CODES.split_whitespace().any(|word| word.trim_end_matches(',') == code.to_string());
            assert!(listed, "{code}");
        }
    }
}
