//! The program's settings: resolved, checked, and with secrets that don't print.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use broker_fn::api::{Addr, Expected, Kind, Registration, Roster, Timestamp};
use reqwest::Url;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::broker::BrokerAt;
use crate::cli::{AccessArgs, BootstrapArgs, BrokerArgs, BrokerUrlArgs, LookArgs, RotateArgs};
use crate::error::Failure;
use crate::node::connection::{Access, Connections};
use crate::node::endpoint::Endpoint;
use crate::node::redis::{MIN_REPLICAS, MIN_REPLICAS_LAG};
use crate::node::secret::{DEFAULT, Login, OtherPassword, Secret};
use crate::report::Report;
use crate::system::decide::{Leaving, Request};
use crate::system::rotation::{OldPassword, Rotation};
use crate::system::servers::Servers;

/// The longest time that a flag takes.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Everything that a bootstrap depends on besides the roster.
#[derive(Debug, Clone)]
pub struct BootstrapConfig {
    pub broker: BrokerAt,
    /// How many Redis servers there must be, if it is not the broker's number.
    pub expected_redis: Option<u16>,
    /// How many Sentinels there must be, if it is not the broker's number.
    pub expected_sentinels: Option<u16>,
    /// The quorum, if it is not the broker's.
    pub quorum: Option<u16>,
    /// Options of `SENTINEL SET`.
    pub options: BTreeMap<String, String>,
    /// Settings for every Redis server.
    pub redis_settings: BTreeMap<String, String>,
    /// The master that the operator names.
    pub master: Option<Addr>,
    /// Whether data that the master lacks may be deleted.
    pub discard_data: bool,
    /// The node that the Sentinels are to forget, even if it still answers. Only `leave` sets it.
    pub leaving: Leaving,
    /// How long the run may take.
    pub timeout: Duration,
    /// How often to check nodes that the run waits for. The interval for a broker that can't wait for a
    /// change is derived from this.
    pub poll_interval: Duration,
    pub nodes: Nodes,
    /// Whether to print the plan and do nothing.
    pub dry_run: bool,
    /// Whether to print at the end how long each phase and each node took.
    pub timings: bool,
}

impl BootstrapConfig {
    /// Checks the command line.
    ///
    /// # Errors
    ///
    /// Everything that is wrong is reported at once.
    pub fn resolve(typed: BootstrapArgs) -> Result<Self, Failure> {
        // Destructured, so that a new flag can't be forgotten here.
        let BootstrapArgs {
            broker,
            redis,
            sentinels,
            quorum,
            sentinel_set,
            redis_set,
            master,
            discard_data,
            access,
            timeout,
            poll_interval,
            command_timeout,
            dry_run,
            timings,
        } = typed;
        let mut wrong = Vec::new();

        let broker = resolve_broker(broker, &mut wrong);
        let nodes = Nodes::resolve(access, command_timeout, &mut wrong);
        if discard_data && master.is_none() {
            wrong.push("--discard-data: requires --master, the server whose data is kept".into());
        }
        let options = settings("--sentinel-set", &sentinel_set, check_option, &mut wrong);
        let redis_settings = settings("--redis-set", &redis_set, check_redis_setting, &mut wrong);
        check_time("--timeout", timeout, &mut wrong);
        check_time("--poll-interval", poll_interval, &mut wrong);
        if let (Some(quorum), Some(sentinels)) = (quorum, sentinels)
            && quorum > sentinels
        {
            wrong.push(format!("--quorum: {quorum} is greater than {sentinels}, the number of Sentinels"));
        }
        match broker {
            Some(broker) if wrong.is_empty() => Ok(Self {
                broker,
                nodes,
                expected_redis: redis,
                expected_sentinels: sentinels,
                quorum,
                options,
                redis_settings,
                master,
                discard_data,
                leaving: Leaving::default(),
                timeout,
                poll_interval,
                dry_run,
                timings,
            }),
            Some(_) | None => Err(Failure::Usage(wrong)),
        }
    }

    /// The roster, plus the master that the operator names: the operator vouches for that server, so it need
    /// not be registered.
    #[must_use]
    pub fn with_master(&self, mut roster: Roster) -> Roster {
        if let Some(master) = &self.master
            && roster.redis.iter().all(|registration| registration.addr != *master)
        {
            roster.redis.push(Registration::new(master.clone(), Timestamp::now()));
        }
        roster
    }

    /// How many nodes there must be: the operator's number if there is one, otherwise the broker's.
    ///
    /// # Errors
    ///
    /// If the quorum is greater than the number of Sentinels.
    pub fn expected(&self, roster: &Roster) -> Result<Expected, Failure> {
        let sentinels = self.expected_sentinels.unwrap_or(roster.expected.sentinels);
        let quorum = match (self.quorum, self.expected_sentinels) {
            (Some(quorum), _) => quorum,
            (None, Some(sentinels)) => sentinels / 2 + 1,
            (None, None) => roster.expected.quorum,
        };
        if quorum > sentinels {
            return Err(Failure::Usage(vec![format!(
                "--quorum: {quorum} is greater than {sentinels}, the number of Sentinels"
            )]));
        }
        Ok(Expected { redis: self.expected_redis.unwrap_or(roster.expected.redis), sentinels, quorum })
    }

    /// The planner's request.
    #[must_use]
    pub fn request(&self, roster: &Roster, expected: Expected) -> Request {
        Request {
            group: roster.group.clone(),
            expected,
            quorum_given: self.quorum.is_some(),
            options: self.options.clone(),
            redis_settings: self.redis_settings.clone(),
            leaving: self.leaving.clone(),
            sentinel_login: self.nodes.redis.login.clone(),
            replication_login: self.nodes.replication_login.clone(),
            redis_user: self.nodes.redis.user().to_owned(),
            renamed: self.nodes.redis.renamed.clone(),
            master: self.master.as_ref().map(Endpoint::from),
            discard_data: self.discard_data,
        }
    }
}

/// The settings for a look at a system.
#[derive(Debug, Clone)]
pub struct LookConfig {
    pub broker: BrokerAt,
    /// How many Redis servers there must be, if it is not the broker's number.
    pub expected_redis: Option<u16>,
    /// How many Sentinels there must be, if it is not the broker's number.
    pub expected_sentinels: Option<u16>,
    pub nodes: Nodes,
    /// Whether the logins of replicas and Sentinels are being changed. If so, the old login and the new login
    /// are both right.
    pub logins_change: bool,
}

impl LookConfig {
    /// Checks the command line, and the times of these flags.
    ///
    /// # Errors
    ///
    /// Everything that is wrong is reported at once.
    pub fn resolve(typed: LookArgs, times: &[(&str, Duration)]) -> Result<Self, Failure> {
        let LookArgs { broker, redis, sentinels, access, command_timeout } = typed;
        let mut wrong = Vec::new();
        let broker = resolve_broker(broker, &mut wrong);
        let nodes = Nodes::resolve(access, command_timeout, &mut wrong);
        for (flag, time) in times {
            check_time(flag, *time, &mut wrong);
        }
        match broker {
            Some(broker) if wrong.is_empty() => {
                let (expected_redis, expected_sentinels) = (redis, sentinels);
                Ok(Self { broker, expected_redis, expected_sentinels, nodes, logins_change: false })
            }
            Some(_) | None => Err(Failure::Usage(wrong)),
        }
    }

    /// How many nodes there must be.
    #[must_use]
    pub fn expected(&self, roster: &Roster) -> Expected {
        let Expected { redis, sentinels, quorum } = roster.expected;
        Expected {
            redis: self.expected_redis.unwrap_or(redis),
            sentinels: self.expected_sentinels.unwrap_or(sentinels),
            quorum: self.expected_sentinels.map_or(quorum, |sentinels| sentinels / 2 + 1),
        }
    }

    /// The planner's request, the same as for a bootstrap without further flags.
    #[must_use]
    pub fn request(&self, roster: &Roster) -> Request {
        Request {
            group: roster.group.clone(),
            expected: self.expected(roster),
            quorum_given: false,
            options: BTreeMap::new(),
            redis_settings: BTreeMap::new(),
            leaving: Leaving::default(),
            sentinel_login: self.nodes.redis.login.clone().filter(|_| !self.logins_change),
            replication_login: self.nodes.replication_login.clone().filter(|_| !self.logins_change),
            redis_user: self.nodes.redis.user().to_owned(),
            renamed: self.nodes.redis.renamed.clone(),
            master: None,
            discard_data: false,
        }
    }
}

/// What `rotate` depends on.
#[derive(Debug, Clone)]
pub struct RotateConfig {
    pub rotation: Rotation,
    /// What happens to the old password in the end. `None`: the person at the terminal decides.
    pub old_password: Option<OldPassword>,
    /// How nodes are reached while each of them accepts the old password or the new one.
    pub before: LookConfig,
    /// How nodes are reached once all of them accept the new password.
    pub after: LookConfig,
    pub timeout: Duration,
}

impl RotateConfig {
    /// Checks the command line. `may_ask`: whether a person sits at a terminal and can be asked.
    ///
    /// # Errors
    ///
    /// Everything that is wrong is reported at once.
    pub fn resolve(typed: RotateArgs, may_ask: bool) -> Result<Self, Failure> {
        let RotateArgs { new_password_file, user, old_password_file, keep_old, drop_old, look, timeout } =
            typed;
        let look = LookConfig::resolve(look, &[("--timeout", timeout)])?;
        let mut wrong = Vec::new();
        let nodes = &look.nodes;
        let user = user.filter(|user| !user.is_empty()).unwrap_or_else(|| nodes.redis.user().to_owned());
        let logins = [&nodes.redis.login, &nodes.replication_login].into_iter().flatten();
        let known = { logins }.find(|login| login.user() == user);
        let new = secret_file("--new-password-file", &new_password_file, &mut wrong);
        if new.is_none() && wrong.is_empty() {
            wrong.push(format!("--new-password-file: `{}` is empty", new_password_file.display()));
        }
        let old = match old_password_file {
            Some(path) => secret_file("--old-password-file", &path, &mut wrong),
            None => known.map(|login| login.password.clone()),
        };
        if old.is_none() && wrong.is_empty() {
            wrong.push(format!(
                "--old-password-file: the current password of `{user}` is required; for the user of \
                 --redis-username, --redis-password-file is enough"
            ));
        }
        if old.is_some() && old == new {
            wrong.push("--new-password-file: contains the old password".into());
        }
        let old_password = match (keep_old, drop_old) {
            (true, _) => Some(OldPassword::Kept),
            (_, true) => Some(OldPassword::Dropped),
            _ if may_ask => None,
            _ => {
                wrong.push(
                    "--keep-old or --drop-old: one of them is required without a terminal. With \
                     --keep-old the servers accept both passwords; give the new password to clients and \
                     nodes, then run this again with --drop-old"
                        .into(),
                );
                None
            }
        };
        let (Some(old), Some(new), true) = (old, new, wrong.is_empty()) else {
            return Err(Failure::Usage(wrong));
        };
        let rotation = Rotation { user, old, new };
        let (mut before, mut after) = (look.clone(), look);
        // During the rotation, a server accepts either password. The server's settings show whether it uses
        // the new password in the end.
        (before.logins_change, after.logins_change) = (true, true);
        if let Some(login) = after.nodes.redis.login.as_mut().filter(|login| rotation.is_of(login)) {
            login.password = rotation.new.clone();
        }
        if before.nodes.redis.login.as_ref().is_some_and(|login| rotation.is_of(login)) {
            before.nodes.redis.other = Some(OtherPassword::New(rotation.new.clone()));
            after.nodes.redis.other = None;
        }
        Ok(Self { rotation, old_password, before, after, timeout })
    }
}

/// Checks the command line. If something is wrong, the result is `None`, and the reason is added to `wrong`.
pub fn resolve_broker(typed: BrokerArgs, wrong: &mut Vec<String>) -> Option<BrokerAt> {
    let BrokerArgs { at, group } = typed;
    resolve_broker_url(at, wrong).map(|at| BrokerAt { group, ..at })
}

/// Like [`resolve_broker`], without a group.
pub fn resolve_broker_url(typed: BrokerUrlArgs, wrong: &mut Vec<String>) -> Option<BrokerAt> {
    let BrokerUrlArgs { broker, token, token_file } = typed;
    let url = match Url::parse(&broker) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            wrong.push(
                "--broker: the URL must not contain a user or a password; set the token with --token-file"
                    .into(),
            );
            None
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") => Some(url),
        Ok(url) => {
            wrong.push(format!("--broker: the URL must begin with http or https, not `{}`", url.scheme()));
            None
        }
        Err(error) => {
            wrong.push(format!("--broker: not a URL: {error}"));
            None
        }
    };
    let token = secret("--token", token, token_file, wrong);
    if token.as_ref().is_some_and(|token| !token.reveal().bytes().all(|byte| byte.is_ascii_graphic())) {
        wrong.push(
            "--token: contains blanks, line breaks or other characters that an HTTP header can't contain"
                .into(),
        );
    }
    Some(BrokerAt { url: url?, token, group: None })
}

/// How Redis servers and Sentinels are reached.
#[derive(Debug, Clone)]
pub struct Nodes {
    pub redis: Access,
    pub sentinels: Access,
    /// The login that replicas use on their master.
    pub replication_login: Option<Login>,
}

impl Nodes {
    /// Checks the command line. Adds every mistake to `wrong`.
    pub fn resolve(typed: AccessArgs, command_timeout: Duration, wrong: &mut Vec<String>) -> Self {
        let AccessArgs {
            redis_username,
            redis_password,
            redis_password_file,
            sentinel_username,
            sentinel_password,
            sentinel_password_file,
            replication_username,
            replication_password,
            replication_password_file,
            tls,
            tls_ca,
            tls_cert,
            tls_key,
            rename_command,
            allow,
        } = typed;
        // The file is read again when a server refuses the password, because a process that runs for months
        // has to notice a new password.
        let now_in = |file: &Option<PathBuf>| file.clone().map(OtherPassword::File);
        let (redis_other, sentinel_other) = (now_in(&redis_password_file), now_in(&sentinel_password_file));
        let redis_login = login("--redis", redis_username, redis_password, redis_password_file, wrong);
        let sentinel_login =
            login("--sentinel", sentinel_username, sentinel_password, sentinel_password_file, wrong);
        let replication_login = login(
            "--replication",
            replication_username,
            replication_password,
            replication_password_file,
            wrong,
        );
        let tls = if tls { tls_config(tls_ca, tls_cert.zip(tls_key), wrong) } else { None };
        check_time("--command-timeout", command_timeout, wrong);
        Self {
            replication_login: replication_login.or_else(|| redis_login.clone()),
            redis: Access {
                kind: Kind::Redis,
                login: redis_login,
                other: redis_other,
                tls: tls.clone(),
                allow: allow.clone(),
                command_timeout,
                renamed: renamed(&rename_command, wrong),
            },
            sentinels: Access {
                kind: Kind::Sentinel,
                login: sentinel_login,
                other: sentinel_other,
                tls,
                allow,
                command_timeout,
                renamed: BTreeMap::new(),
            },
        }
    }

    /// Connections to the nodes, none of them open yet. They report every command.
    #[must_use]
    pub fn connections(&self, report: &Report) -> Servers {
        let connections = |access: &Access| Connections::new(access.clone(), Arc::new(report.clone()));
        Servers {
            redis: connections(&self.redis),
            sentinels: connections(&self.sentinels),
            timings: Arc::clone(report.timings()),
        }
    }
}

pub fn check_time(flag: &str, time: Duration, wrong: &mut Vec<String>) {
    if time.is_zero() || time > LONGEST {
        let days = LONGEST.as_secs() / (24 * 60 * 60);
        wrong.push(format!("{flag}: must be greater than zero and at most {days} days"));
    }
}

/// A secret that was typed, or that is in a file.
fn secret(
    flag: &str,
    typed: Option<String>,
    file: Option<PathBuf>,
    wrong: &mut Vec<String>,
) -> Option<Secret> {
    match file {
        Some(path) => secret_file(&format!("{flag}-file"), &path, wrong),
        None => typed.filter(|text| !text.is_empty()).map(Secret::new),
    }
}

/// A secret in a file. `None` if the file is empty. Also `None` if the file can't be read; then the reason is
/// added to `wrong`.
fn secret_file(flag: &str, path: &Path, wrong: &mut Vec<String>) -> Option<Secret> {
    Secret::from_file(path).unwrap_or_else(|error| {
        wrong.push(format!("{flag}: `{}` can't be read: {error}", path.display()));
        None
    })
}

/// A login of `{flag}-username` and `{flag}-password`.
fn login(
    flag: &str,
    username: Option<String>,
    password: Option<String>,
    file: Option<PathBuf>,
    wrong: &mut Vec<String>,
) -> Option<Login> {
    // `default` is the user of a login without a user, so both are the same login.
    let username = username.filter(|username| !username.is_empty() && username != DEFAULT);
    let before = wrong.len();
    match secret(&format!("{flag}-password"), password, file, wrong) {
        Some(password) => Some(Login { username, password }),
        None => {
            if username.is_some() && wrong.len() == before {
                wrong.push(format!("{flag}-username: requires a password; set {flag}-password-file"));
            }
            None
        }
    }
}

/// Reads each `OLD=NEW` of `--rename-command`.
fn renamed(typed: &[String], wrong: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut renamed = BTreeMap::new();
    for text in typed.iter().filter(|text| !text.is_empty()) {
        match text.split_once('=').map(|(old, new)| (old.trim(), new.trim())) {
            Some((old, new)) if is_command(old) && is_command(new) => {
                renamed.insert(old.to_ascii_uppercase(), new.to_owned());
            }
            // The new name may be a secret, so the message does not contain it.
            Some(_) | None => {
                wrong.push("--rename-command: must be OLD=NEW, like CONFIG=its-other-name".into());
            }
        }
    }
    renamed
}

/// A word that Redis accepts as a command, and that needs no quotes in a configuration file.
fn is_command(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The settings for TLS to the nodes. `None` if something is wrong with them; then the reason is added to
/// `wrong`.
fn tls_config(
    ca: Option<PathBuf>,
    own: Option<(PathBuf, PathBuf)>,
    wrong: &mut Vec<String>,
) -> Option<Arc<ClientConfig>> {
    let roots = match ca {
        Some(path) => certificates("--tls-ca", &path, wrong),
        None => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                wrong.push("--tls: this system has no CA certificates; set --tls-ca".into());
            }
            Some(found.certs)
        }
    };
    let own = match own {
        Some((cert, key)) => {
            let chain = certificates("--tls-cert", &cert, wrong);
            let key = read_pem("--tls-key", &key, wrong, |pem| PrivateKeyDer::from_pem_slice(pem).ok());
            Some((chain?, key?))
        }
        None => None,
    };
    let mut store = RootCertStore::empty();
    // Some systems have certificates that can't be parsed any more. They are left out.
    store.add_parsable_certificates(roots?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("ring has ciphers for TLS 1.2 and 1.3").with_root_certificates(store);
    let config = match own {
        None => Ok(config.with_no_client_auth()),
        Some((chain, key)) => config.with_client_auth_cert(chain, key),
    };
    match config {
        Ok(config) => Some(Arc::new(config)),
        Err(error) => {
            wrong.push(format!("--tls-cert, --tls-key: {error}"));
            None
        }
    }
}

fn certificates(flag: &str, path: &Path, wrong: &mut Vec<String>) -> Option<Vec<CertificateDer<'static>>> {
    read_pem(flag, path, wrong, |pem| {
        let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
        (!all.is_empty()).then_some(all)
    })
}

fn read_pem<T>(
    flag: &str,
    path: &Path,
    wrong: &mut Vec<String>,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let problem = match std::fs::read(path) {
        Ok(bytes) => match parse(&bytes) {
            Some(parsed) => return Some(parsed),
            None => "contains no certificate or key in PEM format".to_owned(),
        },
        Err(error) => format!("can't be read: {error}"),
    };
    wrong.push(format!("{flag}: `{}` {problem}", path.display()));
    None
}

/// Reads each `KEY=VALUE` of this flag.
fn settings(
    flag: &str,
    typed: &[String],
    check: impl Fn(&str) -> Result<(String, String), String>,
    wrong: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for setting in typed.iter().filter(|setting| !setting.is_empty()) {
        match check(setting) {
            Ok((name, value)) => {
                settings.insert(name, value);
            }
            Err(what) => wrong.push(format!("{flag} {what}")),
        }
    }
    settings
}

/// Checks one `KEY=VALUE` of `--redis-set`.
fn check_redis_setting(setting: &str) -> Result<(String, String), String> {
    let Some((name, value)) = setting.split_once('=') else {
        return Err(format!("{setting}: must be KEY=VALUE, like min-replicas-to-write=1"));
    };
    let (name, value) = (name.trim(), value.trim());
    let least = match name {
        MIN_REPLICAS => 0,
        // With 0, Redis does not check the number of replicas.
        MIN_REPLICAS_LAG => 1,
        _ => {
            return Err(format!(
                "{setting}: `{name}` can't be set here; possible settings: {MIN_REPLICAS}, \
                 {MIN_REPLICAS_LAG}"
            ));
        }
    };
    match value.parse::<u16>() {
        Ok(number) if number >= least => Ok((name.to_owned(), number.to_string())),
        Ok(_) | Err(_) => {
            Err(format!("{setting}: {name} must be a whole number from {least} to {}", u16::MAX))
        }
    }
}

/// Checks one `KEY=VALUE` of `--sentinel-set`. Sentinel takes the options of one `SENTINEL SET` one by one,
/// and keeps those before a bad one (seen on Redis 7.0.15).
fn check_option(option: &str) -> Result<(String, String), String> {
    let Some((name, value)) = option.split_once('=') else {
        return Err(format!("{option}: must be KEY=VALUE, like down-after-milliseconds=5000"));
    };
    let (name, value) = (name.trim(), value.trim());
    match name {
        "down-after-milliseconds" | "failover-timeout" | "parallel-syncs" => match value.parse::<u32>() {
            Ok(number) if number > 0 => Ok((name.to_owned(), number.to_string())),
            Ok(_) | Err(_) => Err(format!("{option}: {name} must be a whole number of at least 1")),
        },
        "notification-script" | "client-reconfig-script" if !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        "quorum" => Err(format!("{option}: set the quorum with --quorum")),
        _ => Err(format!(
            "{option}: `{name}` can't be set here; possible options: down-after-milliseconds, \
             failover-timeout, parallel-syncs, notification-script, client-reconfig-script"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, CliCommand};
    use clap::Parser as _;

    fn resolve(flags: &[&str]) -> Result<BootstrapConfig, Failure> {
        let words = ["sentinel-runner", "bootstrap"].iter().chain(flags);
        let CliCommand::Bootstrap(bootstrap) = Cli::try_parse_from(words).unwrap().command else {
            panic!("another command")
        };
        BootstrapConfig::resolve(bootstrap)
    }

    #[test]
    fn a_password_file_takes_precedence_for_every_login() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of-the-file").unwrap();
        for name in ["redis", "sentinel", "replication"] {
            let (typed, from) = (format!("--{name}-password=typed"), format!("--{name}-password-file"));
            let path = file.path().to_str().unwrap();
            let Nodes { redis, sentinels, replication_login } =
                resolve(&["--broker", "http://b", &typed, &from, path]).unwrap().nodes;
            let logins = [redis.login, sentinels.login, replication_login]
                .map(|login| login.map(|login| login.password.reveal().to_owned()));
            let given: Vec<String> = logins.into_iter().flatten().collect();
            assert!(
                !given.is_empty() && given.iter().all(|password| password == "of-the-file"),
                "{name}: {given:?}"
            );
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let flags = [
            "--broker",
            "ftp://b",
            "--sentinels",
            "3",
            "--quorum",
            "4",
            "--timeout",
            "0s",
            "--sentinel-set",
            "parallel-syncs=0,nonsense,quorum=2,auth-pass=x",
            "--redis-set",
            "min-replicas-max-lag=0,min-replicas-to-write=-1,maxmemory=1",
            "--redis-username",
            "ops",
            "--tls",
            "--tls-ca",
            "/nowhere",
        ];
        let Err(Failure::Usage(wrong)) = resolve(&flags) else { panic!("accepted") };
        for flag in [
            "--broker",
            "--quorum",
            "--timeout",
            "parallel-syncs=0",
            "nonsense",
            "quorum=2",
            "auth-pass=x",
            "min-replicas-max-lag=0: min-replicas-max-lag must be a whole number from 1",
            "min-replicas-to-write=-1",
            "maxmemory=1",
            "--redis-username",
            "--tls-ca",
        ] {
            assert!(wrong.iter().any(|line| line.contains(flag)), "{flag}: {wrong:?}");
        }
    }

    #[test]
    fn options_are_taken_from_one_list_or_many() {
        let config = resolve(&[
            "--broker",
            "http://b",
            "--sentinel-set",
            "down-after-milliseconds=5000,failover-timeout=10000",
            "--sentinel-set",
            "parallel-syncs=1",
        ])
        .unwrap();
        assert_eq!(config.options.len(), 3);
        assert_eq!(config.options["down-after-milliseconds"], "5000");
    }

    #[test]
    fn a_secret_does_not_print() {
        let flags = ["--broker", "http://b", "--token", "s3cret", "--redis-password", "s3cret"];
        let config = resolve(&flags).unwrap();
        assert_eq!(config.broker.token.as_ref().unwrap().reveal(), "s3cret");
        assert_eq!(
            config.nodes.replication_login, config.nodes.redis.login,
            "replicas use it too, unless told otherwise"
        );
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn the_quorum_of_more_sentinels_is_their_majority() {
        let roster: Roster = serde_json::from_str(
            r#"{"group": "mymaster", "ready": false, "expected": {"redis": 2, "sentinels": 3, "quorum": 2},
                "missing": {"redis": 2, "sentinels": 3}, "redis": [], "sentinels": [], "outcome": null}"#,
        )
        .unwrap();
        let quorum = |flags: &[&str]| {
            let flags = [&["--broker", "http://b"], flags].concat();
            resolve(&flags).unwrap().expected(&roster).map(|expected| expected.quorum).ok()
        };
        assert_eq!(quorum(&[]), Some(2));
        assert_eq!(quorum(&["--sentinels", "5"]), Some(3));
        assert_eq!(quorum(&["--sentinels", "5", "--quorum", "4"]), Some(4));
        assert_eq!(quorum(&["--quorum", "4"]), None);
    }
}
