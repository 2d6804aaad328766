//! `rotate`: changes an ACL user's password on all Redis servers, their replicas and the Sentinels.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use broker_fn::api::Kind;
use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::look::{Look, Watcher};
use super::stop::Stop;
use crate::cli::RotateArgs;
use crate::config::RotateConfig;
use crate::error::Failure;
use crate::node::clients;
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::reply::ServerError;
use crate::node::rights;
use crate::node::secret::Login;
use crate::node::sentinel::{Peer, SentinelState, observation};
use crate::node::unusable::Unusable;
use crate::node::users::{self, Passwords};
use crate::node::version::Version;
use crate::report::Report;
use crate::report::document::{Ending, OldPasswordWord, RotationJson};
use crate::system::decide::{Refusal, RefusalKind};
use crate::system::judge::Unmet;
use crate::system::members::{SentinelMember, System};
use crate::system::observe::{Observed, rehearse};
use crate::system::rotation::{OldPassword, Rotation};
use crate::system::timings::Phase;
use crate::words::count;

/// The time between two looks at a Sentinel that has to log in again. It connects once a second.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

const AGAIN: &str = "run this again; it continues where it stopped";

/// `rotate`.
///
/// # Errors
///
/// If the system is not verified or can't use the new password, or if the command does not complete. It can
/// then be run again.
pub async fn rotate(typed: RotateArgs, report: &Report) -> Result<Ending, Failure> {
    // `--quiet` would suppress the question.
    let may_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !report.is_quiet();
    let config = RotateConfig::resolve(typed, may_ask)?;
    let watcher = Watcher::new(&config.before, report)?;
    let mut stop = Stop::new()?;
    let looked = stop.or(watcher.settled()).await?;
    let run = |looked: Look| {
        let (config, watcher) = (&config, &watcher);
        Ok(RotationRun {
            config,
            watcher,
            report,
            observed: looked.observed,
            system: looked.verdict?,
            deadline: Instant::now() + config.timeout,
        })
    };
    let mut run_now: RotationRun<'_> = run(looked)?;
    let mut sentinels = stop.or(run_now.accept_and_use_new()).await?;
    let end = match config.old_password {
        Some(end) => end,
        None => stop.or(async { Ok(run_now.ask().await) }).await?,
    };
    if end == OldPassword::Dropped {
        if config.old_password.is_none() {
            // While the command waited for the answer, a node may have joined, or restarted with the old
            // password.
            run_now = run(stop.or(watcher.settled()).await?)?;
            sentinels = stop.or(run_now.accept_and_use_new()).await?;
        }
        stop.or(run_now.drop_old()).await?;
    }
    let sentinels: Vec<String> = sentinels.iter().map(ToString::to_string).collect();
    let user = &config.rotation.user;
    let old_password = match end {
        OldPassword::Kept => {
            report.result(format_args!(
                "the servers accept both passwords of `{user}`; give the new password to the clients and \
                 to every `join`, then run this with --drop-old"
            ));
            OldPasswordWord::Kept
        }
        OldPassword::Dropped => {
            report.result(format_args!("no server accepts the old password of `{user}` any more"));
            OldPasswordWord::Dropped
        }
    };
    Ok(Ending::Rotated(RotationJson { user: user.clone(), old_password, sentinels }))
}

struct RotationRun<'a> {
    config: &'a RotateConfig,
    watcher: &'a Watcher<'a>,
    report: &'a Report,
    /// What the nodes answered when the system was verified.
    observed: Observed,
    /// The system that was verified.
    system: System,
    deadline: Instant,
}

impl RotationRun<'_> {
    /// Has all servers accept both passwords, and replicas and Sentinels use the new one. Returns these
    /// Sentinels.
    async fn accept_and_use_new(&self) -> Result<Vec<Endpoint>, Failure> {
        let Self { config, watcher, report, .. } = self;
        let rotation = &config.rotation;
        let passwords = self.passwords().await?;
        for (node, passwords) in &passwords {
            rotation.check(node, passwords).map_err(Failure::Refused)?;
        }
        let sentinels = self.sentinels()?;
        self.survives_in_files(&sentinels)?;
        self.has_the_rights(&passwords).await?;
        self.can_be_kept(&passwords).await?;
        watcher.servers().timings.enter(Phase::Prepare);
        self.apply_on_all(&passwords, Rotation::accept).await?;
        report.event(format_args!("every Redis server accepts the new password of `{}`", rotation.user));
        self.apply_on_all(&self.passwords().await?, Rotation::switch).await?;
        for sentinel in &sentinels {
            self.switch_sentinel(sentinel).await?;
        }
        report.event(format_args!(
            "the replicas and {} log in with the new password",
            count(sentinels.len(), "Sentinel")
        ));
        self.verified(OldPassword::Kept).await?;
        Ok(sentinels.into_iter().map(|sentinel| sentinel.endpoint.clone()).collect())
    }

    async fn drop_old(&self) -> Result<(), Failure> {
        let rotation = &self.config.rotation;
        let passwords = self.passwords().await?;
        // If the old password was mistyped, it would be dropped on no server, and the real one would stay.
        let has_old = |one: &Passwords| one.user.as_ref().is_some_and(|user| user.accepts(&rotation.old));
        let further = passwords.iter().find(|(_, one)| rotation.further(one) > 0);
        if let Some((node, one)) = further
            && !passwords.values().any(has_old)
        {
            return Err(Failure::Refused(Refusal {
                kind: RefusalKind::Usage,
                reason: format!(
                    "no server has the old password, but {node} has {} of `{}` beside the new one",
                    count(rotation.further(one), "password"),
                    rotation.user
                ),
                hint: "check --old-password-file (without it: --redis-password-file or \
                    --replication-password-file); if you keep these passwords, nothing is left to do"
                    .into(),
            }));
        }
        self.apply_on_all(&passwords, Rotation::drop_old).await?;
        let passwords = self.passwords().await?;
        // An earlier run may have been killed before it had the files written.
        for (node, one) in &passwords {
            if let Some(error) = self.write(node, one).await? {
                self.report.warning(format_args!("{node} can't write its configuration: {error}"));
            }
            if rotation.further(one) > 0 {
                self.report.warning(format_args!(
                    "{node} has {} of `{}` beside the new one, which stay",
                    count(rotation.further(one), "password"),
                    rotation.user
                ));
            }
        }
        self.verified(OldPassword::Dropped).await
    }

    /// Checks with the new password that the system is verified, and that nothing is left to do.
    async fn verified(&self, end: OldPassword) -> Result<(), Failure> {
        let Self { config, report, .. } = self;
        let rotation = &config.rotation;
        let unmet: Vec<Unmet> = self
            .passwords()
            .await?
            .iter()
            .flat_map(|(node, passwords)| {
                let left = rotation.left(passwords, end);
                left.into_iter()
                    .map(|command| Unmet::new(node, format!("still needs `{}`", command.shown())).hint(AGAIN))
            })
            .collect();
        if !unmet.is_empty() {
            return Err(Failure::NotVerified { after: config.timeout, unmet });
        }
        Watcher::new(&config.after, report)?.settled().await?.verdict.map(drop)
    }

    /// The passwords of the user, by server.
    async fn passwords(&self) -> Result<BTreeMap<Endpoint, Passwords>, Failure> {
        let redis = &self.watcher.servers().redis;
        let ask = users::observation(&self.config.rotation.user);
        let of = async |node: &Endpoint| {
            let replies =
                redis.send(node, &ask).await.map_err(|error| unreachable(node, Kind::Redis, error))?;
            let passwords = Passwords::parse(&replies).map_err(|(right, error)| Failure::Unusable {
                node: node.clone(),
                what: format!("does not let the runner read a user's passwords: {error}"),
                hint: format!("ACL SETUSER {} {right} on {node}", redis.user()),
            })?;
            Ok((node.clone(), passwords))
        };
        join_all(self.system.redis().map(|member| of(&member.endpoint))).await.into_iter().collect()
    }

    /// The Sentinels that log in on the Redis servers as this user.
    fn sentinels(&self) -> Result<Vec<&SentinelMember>, Failure> {
        let states: Vec<_> =
            self.observed.redis.iter().filter_map(|node| Some((node, node.state.as_ref().ok()?))).collect();
        if let Some((node, _)) = states.iter().find(|(_, state)| state.watchers.is_none()) {
            return Err(Failure::Unusable {
                node: node.endpoint.clone(),
                what: "does not show which user the Sentinels log in as".into(),
                hint: format!(
                    "ACL SETUSER {} +{} on {}",
                    self.watcher.servers().redis.user(),
                    clients::RIGHT,
                    node.endpoint
                ),
            });
        }
        let watchers: Vec<_> = states.iter().flat_map(|(_, state)| state.watchers.iter().flatten()).collect();
        let uses = |sentinel: &&SentinelMember| {
            watchers.iter().any(|client| client.is(&sentinel.id) && client.user == self.config.rotation.user)
        };
        Ok(self.system.sentinels.iter().filter(uses).collect())
    }

    /// Checks that the Sentinels can keep the new password in their files, and so start again.
    fn survives_in_files(&self, sentinels: &[&SentinelMember]) -> Result<(), Failure> {
        let Rotation { user, new, .. } = &self.config.rotation;
        let login = Login { username: Some(user.clone()), password: new.clone() };
        for sentinel in sentinels {
            if let Some(odd) = login.oddity(sentinel.version.is_some_and(Version::quotes_passwords)) {
                return Err(Failure::Usage(vec![format!(
                    "--new-password-file: the password contains {odd}, and the Sentinel {} would not \
                     start again with it; use letters, digits and other visible characters, without \
                     quotes",
                    sentinel.endpoint
                )]));
            }
        }
        Ok(())
    }

    async fn has_the_rights(&self, passwords: &BTreeMap<Endpoint, Passwords>) -> Result<(), Failure> {
        let redis = &self.watcher.servers().redis;
        for (node, passwords) in passwords {
            let parts = self.config.rotation.rights(passwords);
            let question = rights::question();
            let replies =
                redis.send(node, &question).await.map_err(|error| unreachable(node, Kind::Redis, error))?;
            let lacks = rehearse(redis, node, &replies, &parts).await;
            if let Some((right, lack)) = lacks.first_key_value() {
                let (what, hint) = match lack {
                    rights::Lack::Denied => (
                        format!("the user `{}` has no right to `{right}`", redis.user()),
                        format!("ACL SETUSER {} +{right} on {node}", redis.user()),
                    ),
                    rights::Lack::Unknown => (
                        format!("does not know the command `{right}`"),
                        "set the command's new name with --rename-command, or remove its `rename-command`"
                            .into(),
                    ),
                };
                return Err(Failure::Unusable { node: node.clone(), what, hint });
            }
        }
        Ok(())
    }

    /// Checks that the servers can write their files. A server that can't would come back with the old
    /// password after a restart, and other nodes could not log in. So dropping the old password is refused
    /// then.
    async fn can_be_kept(&self, all: &BTreeMap<Endpoint, Passwords>) -> Result<(), Failure> {
        let Self { config, report, .. } = self;
        let end = config.old_password.unwrap_or(OldPassword::Dropped);
        for (node, passwords) in all {
            let Some(error) = self.write(node, passwords).await? else { continue };
            if end == OldPassword::Dropped && !config.rotation.left(passwords, end).is_empty() {
                return Err(Failure::Refused(Refusal {
                    kind: RefusalKind::Unsafe,
                    reason: format!(
                        "{node} can't write its configuration ({error}): after its next start it would have \
                         the old password again"
                    ),
                    hint: "let the server write its file; or run this with --keep-old, set the new password \
                           where the server is started from, restart one server after the other \
                           (`sentinel-runner roll`), and run this with --drop-old"
                        .into(),
                }));
            }
            report.warning(format_args!(
                "{node} can't write its configuration ({error}): after its next start it has only the \
                 password that it is started with"
            ));
        }
        Ok(())
    }

    /// Has a server write its files. Returns the server's error if it can't.
    async fn write(&self, node: &Endpoint, passwords: &Passwords) -> Result<Option<ServerError>, Failure> {
        let redis = &self.watcher.servers().redis;
        let replies = redis.send(node, &self.config.rotation.write(passwords)).await;
        Ok(replies.map_err(|error| unreachable(node, Kind::Redis, error))?.into_iter().find_map(Result::err))
    }

    /// Sends each server the missing commands of this step, and makes the server write its files.
    async fn apply_on_all(
        &self,
        all: &BTreeMap<Endpoint, Passwords>,
        step: fn(&Rotation, &Passwords) -> Vec<Command>,
    ) -> Result<(), Failure> {
        for (node, passwords) in all {
            let commands = step(&self.config.rotation, passwords);
            if commands.is_empty() {
                continue;
            }
            self.send(Kind::Redis, node, &commands).await?;
            // With --keep-old the run goes on, and `can_be_kept` has printed a warning.
            if let Some(error) = self.write(node, passwords).await?
                && self.config.old_password != Some(OldPassword::Kept)
            {
                return Err(Failure::Unusable {
                    node: node.clone(),
                    what: format!("can't write its configuration any more: {error}"),
                    hint: format!("let the server write its file, then {AGAIN}"),
                });
            }
        }
        Ok(())
    }

    async fn send(&self, kind: Kind, node: &Endpoint, commands: &[Command]) -> Result<(), Failure> {
        let connections = self.watcher.servers().of(kind);
        let replies =
            connections.send(node, commands).await.map_err(|error| unreachable(node, kind, error))?;
        for (command, reply) in commands.iter().zip(replies) {
            // Another run has removed the password already, or the command was sent twice. Either is fine.
            if let Err(error) = reply
                && !(command.name() == "ACL" && error.detail.contains("does not exist"))
            {
                return Err(Failure::Unusable {
                    node: node.clone(),
                    what: format!("`{}` was answered with `{error}`", command.shown()),
                    hint: format!("check that node, then {AGAIN}"),
                });
            }
        }
        Ok(())
    }

    /// Has a Sentinel log in with the new password, and waits until the Sentinel has done so. The caller does
    /// this for one Sentinel after the other, so that a majority is connected at every moment. No command
    /// reads a Sentinel's password, so the password is always set.
    async fn switch_sentinel(&self, sentinel: &SentinelMember) -> Result<(), Failure> {
        let node = &sentinel.endpoint;
        let before = self.connections_of(sentinel).await?;
        let new = self.config.rotation.new.reveal();
        let set = command!("SENTINEL", "SET", self.system.group, "auth-pass", new);
        self.send(Kind::Sentinel, node, &[set]).await?;
        loop {
            let now = self.connections_of(sentinel).await?;
            let lacks = now.iter().find(|(at, number)| number.is_none() || before.get(*at) == Some(number));
            let reached = self.reaches_all(node).await?;
            let Some(what) = lacks
                .map(|(at, _)| format!("has not logged in on {at} with the new password"))
                .or_else(|| (!reached).then(|| "does not reach every Redis server".to_owned()))
            else {
                return Ok(());
            };
            if Instant::now() >= self.deadline {
                let unmet = Unmet::new(node, what).hint(format!("check that Sentinel, then {AGAIN}"));
                return Err(Failure::NotVerified { after: self.config.timeout, unmet: vec![unmet] });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The id of the Sentinel's connection, by server.
    async fn connections_of(
        &self,
        sentinel: &SentinelMember,
    ) -> Result<BTreeMap<&Endpoint, Option<u64>>, Failure> {
        let redis = &self.watcher.servers().redis;
        let of = async |node| {
            let replies = redis.send(node, &[clients::subscribers()]).await;
            let replies = replies.map_err(|error| unreachable(node, Kind::Redis, error))?;
            let all = replies[0].as_ref().map(clients::sentinels).unwrap_or_default();
            let own =
                all.iter().filter(|client| client.is(&sentinel.id)).map(|client| client.connection).max();
            Ok((node, own))
        };
        join_all(self.system.redis().map(|member| of(&member.endpoint))).await.into_iter().collect()
    }

    async fn reaches_all(&self, sentinel: &Endpoint) -> Result<bool, Failure> {
        let ask = observation(self.system.group.as_str());
        let replies = self.watcher.servers().sentinels.send(sentinel, &ask).await;
        let replies = replies.map_err(|error| unreachable(sentinel, Kind::Sentinel, error))?;
        let state = SentinelState::parse(sentinel, &replies).ok();
        Ok(state.and_then(|state| state.monitored).is_some_and(|monitored| {
            monitored.master.was_reached() && monitored.replicas.iter().all(Peer::was_reached)
        }))
    }

    /// Asks the person at the terminal. Any answer except `yes` keeps the old password.
    async fn ask(&self) -> OldPassword {
        self.report.event(format_args!(
            "the system is verified with the new password of `{}`, and accepts both passwords. Give the \
             new password to the clients and to every `join` (REDIS_PASSWORD_FILE). Then type `yes` to \
             drop the old password: after that, logins with it are refused",
            self.config.rotation.user
        ));
        let (answer_to, answer) = oneshot::channel();
        // A separate thread reads the answer, so that the program can end while the thread still reads.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
            let _ = answer_to.send(line);
        });
        match answer.await {
            Ok(line) if line.trim() == "yes" => OldPassword::Dropped,
            Ok(_) | Err(_) => OldPassword::Kept,
        }
    }
}

fn unreachable(node: &Endpoint, kind: Kind, error: crate::node::connection::ConnectionError) -> Failure {
    let problem = Unusable::from_connection(kind, error);
    Failure::Unusable {
        node: node.clone(),
        what: problem.to_string(),
        hint: format!("{}; then {AGAIN}", problem.hint()),
    }
}
