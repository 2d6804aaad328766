//! A change of master that loses no acknowledged write.
//!
//! Sentinel's own manual failover attaches the old master to the new one only 8 to 16 s later. All writes in
//! this time from clients with open connections to the old master are lost. So here:
//!
//! 1. writes are paused on the master (`CLIENT PAUSE … WRITE`, 6.2): from now on nothing is acknowledged;
//! 2. every replica that may be promoted catches up with the master's whole stream;
//! 3. a Sentinel fails over;
//! 4. as soon as a replica is promoted, the old master is made its replica. Then its pause ends: the waiting
//!    writes are answered with `READONLY`, `EXECABORT` or `UNBLOCKED`;
//! 5. a majority of the Sentinels reports the new master, and soon all Sentinels that answer do.
//!
//! The server ends the pause at its time limit, even if this process dies. It is short until a Sentinel was
//! asked. After that it is as long as possible: if this process dies, the Sentinels have time to attach the
//! old master, which takes them 8 to 16 s.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{join, join_all};
use tokio::time::{Instant, sleep, timeout};

use super::observe::rehearse;
use super::servers::Servers;
use crate::node::clients;
use crate::node::command::{Command, command};
use crate::node::connection::{ConnectionError, Connections};
use crate::node::endpoint::Endpoint;
use crate::node::hello::HELLO_CHANNEL;
use crate::node::info::Info;
use crate::node::replication::{History, Replication, Role};
use crate::node::reply::{Reply, text};
use crate::node::rights::{self, Lack, Right};
use crate::node::sentinel::{NamedMaster, named_address};
use crate::words::took;

/// How far a replica may be behind before the pause, in bytes. It has to catch up with them while no client
/// can write.
const NEAR: i64 = 1 << 20;

/// How long the replicas may take to come as near as [`NEAR`].
const NEAR_WITHIN: Duration = Duration::from_secs(5);

/// The longest pause before a Sentinel is asked. If this process dies in that time, no client can write until
/// the pause ends.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause after a Sentinel was asked: longer than the 8 to 16 s after which the Sentinels attach
/// the old master themselves. Their commands to it wait like all others.
const LONG_PAUSE: Duration = Duration::from_secs(24);

/// How long one node may take to answer during the pause.
const ANSWER: Duration = Duration::from_millis(250);

/// The time between two observations.
const POLL: Duration = Duration::from_millis(3);

/// How long a Sentinel may answer that it finds no replica to promote.
const FOUND_WITHIN: Duration = Duration::from_millis(300);

/// How long a Sentinel that was asked may be silent. A Sentinel that was frozen for more than two seconds
/// enters TILT for 30 s, and promotes no replica (`SENTINEL_TILT_TRIGGER`). So another Sentinel can be asked.
const SILENT: Duration = Duration::from_millis(2500);

/// How long to wait after the last answer of a Sentinel that is gone. It may have promoted a replica before
/// it died, which takes 0.2 s.
const GONE: Duration = Duration::from_millis(300);

/// How long to wait for a promotion while the Sentinel that was asked answers. By then the old master takes
/// writes again, or will soon.
const PROMOTED_WITHIN: Duration = Duration::from_secs(10);

/// How long the last Sentinel may take to report the master that the other Sentinels report. Until then, a
/// client that asks this Sentinel connects to the old master.
const BY_ALL_WITHIN: Duration = Duration::from_secs(2);

/// How much of the run's time must be left before writes are paused.
const NEEDED: Duration = Duration::from_millis(1500);

/// How long a Sentinel takes at least to promote a replica. That much of the pause must be left when a
/// Sentinel is asked.
const PROMOTION: Duration = Duration::from_millis(400);

/// How long after the request to a Sentinel this process attaches the old master. Later the roles may have
/// changed once more.
const ATTACH_WITHIN: Duration = Duration::from_secs(16);

/// A server: the address at which it is reached, and the address that the Sentinels report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddresses {
    pub endpoint: Endpoint,
    pub announced: Endpoint,
    /// Other addresses of the server.
    pub aliases: Vec<Endpoint>,
}

/// Why the roles were not changed, or why the change was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Abort {
    /// A replica lacks so many bytes of the master's stream, and has not caught up.
    #[error("{replica} is {bytes} bytes behind the master, and does not catch up")]
    Lags { replica: Endpoint, bytes: i64 },
    /// Another process changes the roles.
    #[error("{node} {what}")]
    Busy { node: Endpoint, what: String },
    /// A right is missing.
    #[error("{node}: the user `{user}` {} `{}`", match lack {
        Lack::Denied => "lacks the right to",
        Lack::Unknown => "does not find the command",
    }, right.replace('|', " ").to_ascii_uppercase())]
    Lacks { node: Endpoint, user: String, right: Right, lack: Lack },
    /// A node fails to do its part.
    #[error("{node}: {what}")]
    Node { node: Endpoint, what: String },
    /// A node has not answered in time.
    #[error("{node}: no answer within {}", humantime::format_duration(ANSWER))]
    Silent { node: Endpoint },
    /// A Sentinel was asked, but promoted no replica.
    #[error("{sentinel} was asked to fail over, but promoted no replica within {}", took(*after))]
    NotPromoted { sentinel: Endpoint, after: Duration },
    /// A replica was promoted, but no majority of the Sentinels reports it.
    #[error(
        "{promoted} was promoted, but no majority of the Sentinels reports it as the master after {}",
        took(*after)
    )]
    NotNamed { promoted: Endpoint, after: Duration },
    /// The handover took longer than writes may be paused, and no Sentinel was asked.
    #[error("the handover took longer than the longest pause of writes")]
    TooSlow,
}

/// The result of a handover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOver {
    pub to: ServerAddresses,
    /// From the pause to its end.
    pub paused: Duration,
    /// From the pause until a majority of the Sentinels reported the new master.
    pub named: Duration,
    /// When the pause began.
    pub since: Instant,
    /// Whether the pause ended before the old master was attached. If so, writes that it acknowledged after
    /// the pause are lost.
    pub is_late: bool,
}

/// A change of master and the nodes that take part.
#[derive(Debug)]
pub struct Handover<'a> {
    servers: &'a Servers,
    /// Separate connections to the master. During the pause, a drill's own writes to the master wait on the
    /// shared connections.
    to_master: Connections,
    /// How long the candidates may take to come near to the master before the pause.
    patience: Duration,
    group: &'a str,
    master: ServerAddresses,
    /// The replicas that a Sentinel may promote.
    candidates: Vec<ServerAddresses>,
    /// The Sentinels, in the order in which they are asked.
    sentinels: Vec<Endpoint>,
    /// Whether the roles are being changed. If so, it is better to go on than to stop.
    is_under_way: AtomicBool,
}

impl<'a> Handover<'a> {
    /// Sends nothing yet.
    pub fn new(
        servers: &'a Servers,
        group: &'a str,
        master: ServerAddresses,
        candidates: Vec<ServerAddresses>,
        sentinels: Vec<Endpoint>,
    ) -> Self {
        Self {
            servers,
            to_master: servers.redis.apart(),
            patience: NEAR_WITHIN,
            group,
            master,
            candidates,
            sentinels,
            is_under_way: AtomicBool::new(false),
        }
    }

    /// Connects to the master as `to_master` does, and does not wait for replicas that are behind.
    pub fn of_own(self, to_master: &Connections) -> Self {
        Self { to_master: to_master.apart(), patience: Duration::ZERO, ..self }
    }

    pub fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Relaxed)
    }

    /// Puts the Sentinel with the fewest connected clients first. The Sentinel that leads the failover is the
    /// last to name the new master to clients that use `SENTINEL MASTERS`, as redis-py does: a second later
    /// than the other Sentinels.
    #[must_use]
    pub async fn fewest_clients_first(mut self) -> Self {
        let ask = [command!("INFO", "clients")];
        let clients = self.sentinels.iter().map(async |sentinel| {
            let replies = timeout(ANSWER, self.servers.sentinels.send(sentinel, &ask)).await.ok()?.ok()?;
            Info::parse(&text(replies[0].as_ref().ok()?)).number::<u64>("connected_clients")
        });
        let clients = join_all(clients).await;
        let mut order: Vec<_> = clients.into_iter().zip(std::mem::take(&mut self.sentinels)).collect();
        order.sort_by_key(|(clients, _)| clients.unwrap_or(u64::MAX));
        self.sentinels = order.into_iter().map(|(_, sentinel)| sentinel).collect();
        self
    }

    /// Changes the master.
    ///
    /// # Errors
    ///
    /// The master was not changed, and clients can write to it again. Or the master was changed, but the
    /// change was not confirmed by `until`.
    pub async fn run(&self, until: Instant) -> Result<HandedOver, Abort> {
        let (down_after, _) = self.down_after(ANSWER * 4).await?;
        let pauses = Pauses::new(down_after);
        self.check_rights().await?;
        self.wait_until_near(until).await?;
        // The claim ends when this function ends, on every path.
        let _claim = self.claim().await?;
        if until.saturating_duration_since(Instant::now()) < NEEDED {
            return Err(Abort::TooSlow);
        }
        self.is_under_way.store(true, Ordering::Relaxed);
        let changed = self.change(pauses, until).await;
        self.is_under_way.store(false, Ordering::Relaxed);
        changed
    }

    async fn change(&self, pauses: Pauses, until: Instant) -> Result<HandedOver, Abort> {
        let paused = Instant::now();
        let asked = async {
            self.pause(pauses.short).await?;
            let history = self.catch_up(paused + pauses.short / 2).await?;
            self.pause(pauses.long.saturating_sub(paused.elapsed())).await?;
            let asked = self.ask_first(paused + pauses.short.saturating_sub(PROMOTION)).await?;
            Ok((asked, history))
        };
        match asked.await {
            Ok((asked, history)) => self.attach_and_observe(paused, pauses, asked, &history, until).await,
            Err(abort) => {
                self.unpause().await;
                Err(abort)
            }
        }
    }

    /// The smallest `down-after-milliseconds` of the Sentinels, and which Sentinels answer. It is an error if
    /// one of them is failing over, or reports another master.
    async fn down_after(&self, within: Duration) -> Result<(Duration, Vec<usize>), Abort> {
        let ask = [command!("SENTINEL", "MASTER", self.group)];
        let mut smallest = None::<Duration>;
        let answers = self.sentinels.iter().map(async |sentinel| {
            (sentinel, timeout(within, self.servers.sentinels.send(sentinel, &ask)).await)
        });
        let mut naming = Vec::new();
        for (index, (sentinel, answer)) in join_all(answers).await.into_iter().enumerate() {
            let Ok(Ok(replies)) = answer else { continue };
            let Ok(master) = &replies[0] else { continue };
            let named = NamedMaster::parse(master);
            if named.has_flag("failover_in_progress") {
                return Err(Abort::Busy { node: sentinel.clone(), what: "is failing over".into() });
            }
            if !self.master.is_at(&named.endpoint) {
                let what = format!("reports another master, {}", named.endpoint);
                return Err(Abort::Busy { node: sentinel.clone(), what });
            }
            naming.push(index);
            let down_after = named.field("down-after-milliseconds").parse().map(Duration::from_millis);
            smallest = down_after.ok().into_iter().chain(smallest).min();
        }
        match smallest {
            Some(down_after) if naming.len() > self.sentinels.len() / 2 => Ok((down_after, naming)),
            _ => {
                let all = self.sentinels.len();
                let silent = (0..all).find(|index| !naming.contains(index));
                let node = silent.map_or(&self.master.endpoint, |index| &self.sentinels[index]).clone();
                let what = format!("does not answer, and only {} of {all} Sentinels do", naming.len());
                Err(Abort::Node { node, what })
            }
        }
    }

    /// A process that changes the master announces that by the name of a connection to the master. Otherwise
    /// two such processes could end each other's pause.
    async fn claim(&self) -> Result<Option<impl Sized>, Abort> {
        let master = &self.master.endpoint;
        let name = clients::handover(fastrand::u32(..));
        // Without the right to it, no process can have such a name.
        let claim = match timeout(ANSWER * 2, self.to_master.listen(master, &name, HELLO_CHANNEL)).await {
            Ok(Ok(claim)) => claim,
            Ok(Err(ConnectionError::Denied(_))) => return Ok(None),
            Ok(Err(error)) => return Err(Abort::node(master, error)),
            Err(_) => return Err(Abort::Silent { node: master.clone() }),
        };
        let replies = self.ask(master, &[clients::subscribers()]).await?;
        let others =
            replies[0].as_ref().map(|list| clients::other_handovers(list, &name)).unwrap_or_default();
        match others.first() {
            Some(from) => Err(Abort::Busy {
                node: master.clone(),
                what: format!("is already handing over, as the client at {from} has requested"),
            }),
            None => Ok(Some(claim)),
        }
    }

    /// Checks the rights before writes are paused.
    async fn check_rights(&self) -> Result<(), Abort> {
        let Self { to_master, master, .. } = self;
        let may_rehearse = self.ask(&master.endpoint, &rights::question()).await?;
        let lacks = rehearse(to_master, &master.endpoint, &may_rehearse, &rights::of_handover()).await;
        let lack = lacks.into_iter().find(|(right, _)| !["multi", "exec"].contains(right));
        if let Some((right, lack)) = lack {
            let (node, user) = (master.endpoint.clone(), to_master.user().to_owned());
            return Err(Abort::Lacks { node, user, right, lack });
        }
        // With an empty group name: the right is checked before the name.
        let ask = [command!("SENTINEL", "FAILOVER", ""), command!("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "")];
        let rights = ["sentinel|failover", "sentinel|get-master-addr-by-name"];
        let answers = self.sentinels.iter().map(async |sentinel| {
            (sentinel, timeout(ANSWER * 4, self.servers.sentinels.send(sentinel, &ask)).await)
        });
        for (sentinel, answer) in join_all(answers).await {
            let Ok(Ok(replies)) = answer else { continue };
            let denied = |reply: &Reply| reply.as_ref().is_err_and(|error| error.code == "NOPERM");
            if let Some(index) = replies.iter().position(denied) {
                let (node, user) = (sentinel.clone(), self.servers.sentinels.user().to_owned());
                return Err(Abort::Lacks { node, user, right: rights[index], lack: Lack::Denied });
            }
        }
        Ok(())
    }

    /// Waits, while clients still write, until the replicas have little left to catch up with.
    async fn wait_until_near(&self, until: Instant) -> Result<(), Abort> {
        let until = until.min(Instant::now() + self.patience);
        loop {
            let (_, lag) = self.lag().await?;
            match lag {
                Some((replica, bytes)) if bytes > NEAR => {
                    if Instant::now() >= until {
                        return Err(Abort::Lags { replica, bytes });
                    }
                }
                _ => return Ok(()),
            }
            sleep(POLL * 10).await;
        }
    }

    /// Waits until every candidate has the master's whole stream.
    async fn catch_up(&self, until: Instant) -> Result<History, Abort> {
        loop {
            match self.lag().await? {
                (history, None) => return Ok(history),
                (_, Some((replica, bytes))) if Instant::now() >= until => {
                    return Err(Abort::Lags { replica, bytes });
                }
                _ => sleep(POLL / 3).await,
            }
        }
    }

    /// The master's history and offset; and the candidate that lacks most of it, with the number of bytes.
    async fn lag(&self) -> Result<(History, Option<(Endpoint, i64)>), Abort> {
        let master = self.replication(&self.master.endpoint).await?;
        if master.role != Role::Master {
            let what = "is no longer a master".to_owned();
            return Err(Abort::Busy { node: self.master.endpoint.clone(), what });
        }
        let mut most = None::<(Endpoint, i64)>;
        let answers = self.candidates.iter().map(async |candidate| {
            self.replication(&candidate.endpoint).await.map(|replication| (candidate, replication))
        });
        for answer in join_all(answers).await {
            let (candidate, replication) = answer?;
            // The candidate is about to stop, or stands back. A Sentinel may not have read its new priority
            // yet.
            if replication.priority == Some(0) {
                let what = "can no longer be promoted: its replica-priority is 0".to_owned();
                return Err(Abort::Busy { node: candidate.endpoint.clone(), what });
            }
            let follows = matches!(replication.role, Role::Replica { link_up: true, .. })
                && replication.history.id == master.history.id;
            let applied = replication.applied.filter(|_| follows).unwrap_or_default();
            let bytes = master.history.offset - applied;
            if bytes > 0 && most.as_ref().is_none_or(|(_, most)| bytes > *most) {
                most = Some((candidate.endpoint.clone(), bytes));
            }
        }
        Ok((master.history, most))
    }

    async fn pause(&self, long: Duration) -> Result<(), Abort> {
        let pause = rights::pause(long.as_millis());
        let replies = self.ask(&self.master.endpoint, std::slice::from_ref(&pause)).await?;
        match &replies[0] {
            Ok(_) => Ok(()),
            Err(error) => Err(Abort::node(
                &self.master.endpoint,
                format!("`{}` was answered with `{error}`", pause.shown()),
            )),
        }
    }

    /// An error is ignored: if the master can't be reached, the pause ends at its time limit.
    async fn unpause(&self) {
        let _ = self.ask(&self.master.endpoint, &[rights::unpause()]).await;
    }

    /// Asks the first Sentinel that answers. `until`: the end of the pause, less the time for a promotion.
    async fn ask_first(&self, until: Instant) -> Result<FailoverRequest, Abort> {
        // If a Sentinel is already failing over, or reports another master, no request is needed.
        let answering = match self.down_after(ANSWER).await {
            // A Sentinel that does not answer now would carry out the request at some later time. So it is
            // not asked.
            Ok((_, answering)) => answering,
            Err(Abort::Busy { node, .. }) => {
                let index = self.sentinels.iter().position(|sentinel| *sentinel == node).unwrap_or_default();
                return Ok(FailoverRequest { index, at: Instant::now(), answered: Instant::now() });
            }
            Err(abort) => return Err(abort),
        };
        let mut error = Abort::TooSlow;
        for index in answering {
            match self.ask_for_failover(index, until).await {
                Ok(()) => return Ok(FailoverRequest { index, at: Instant::now(), answered: Instant::now() }),
                Err(abort @ Abort::Node { .. }) => error = abort,
                Err(abort) => return Err(abort),
            }
        }
        Err(error)
    }

    async fn ask_for_failover(&self, index: usize, until: Instant) -> Result<(), Abort> {
        let sentinel = &self.sentinels[index];
        let failover = [command!("SENTINEL", "FAILOVER", self.group)];
        let begun = Instant::now();
        loop {
            if Instant::now() >= until {
                return Err(Abort::TooSlow);
            }
            let answer = timeout(ANSWER, self.servers.sentinels.send(sentinel, &failover)).await;
            let replies = match answer {
                Ok(Ok(replies)) => replies,
                Ok(Err(error)) => return Err(Abort::node(sentinel, error)),
                // The Sentinel may have received the request. If another Sentinel were asked as well, two of
                // them could promote a replica.
                Err(_) => return Ok(()),
            };
            match &replies[0] {
                Ok(_) => return Ok(()),
                // The Sentinel has just discovered its replicas, and examines them at its next tick.
                Err(error) if error.code == "NOGOODSLAVE" && begun.elapsed() < FOUND_WITHIN => {
                    sleep(POLL * 3).await;
                }
                // The Sentinel is failing over already, so no request is needed.
                Err(error) if error.code == "INPROG" => return Ok(()),
                Err(error) => {
                    let what = format!("`SENTINEL FAILOVER` was answered with `{error}`");
                    return Err(Abort::node(sentinel, what));
                }
            }
        }
    }

    /// Attaches the old master as soon as a replica is promoted, and waits until the Sentinels report that
    /// replica.
    async fn attach_and_observe(
        &self,
        paused: Instant,
        pauses: Pauses,
        mut asked: FailoverRequest,
        history: &History,
        until: Instant,
    ) -> Result<HandedOver, Abort> {
        let first_asked = asked.at;
        let mut attached = None::<(ServerAddresses, Duration)>;
        let (mut promoted, mut named_at) = (None, None);
        let mut were_asked = BTreeSet::from([asked.index]);
        let after = loop {
            let looked = Instant::now();
            let observation = self.observe(&asked, history).await;
            if matches!(observation.leader, Leader::FailsOver | Leader::GaveUp) {
                asked.answered = looked;
            }
            if observation.named.is_some() {
                named_at.get_or_insert(looked);
            }
            let times = Moments { first_asked, named_at, until };
            match next(&observation, attached.as_ref().map(|(to, _)| to), looked, &asked, times) {
                NextAction::Attach(to) => {
                    promoted = Some(to.endpoint.clone());
                    // This process may have been stopped since the observation. Then the roles may have
                    // changed again.
                    if looked.elapsed() < ANSWER * 4 {
                        match self.attach(&to).await {
                            Attached::Yes => attached = Some((to, paused.elapsed())),
                            // A server that is gone counts as attached: no client writes to it, and the
                            // Sentinels attach it when it comes back.
                            Attached::IsGone if observation.named.is_some() => {
                                attached = Some((to, pauses.long.min(paused.elapsed())));
                            }
                            Attached::IsGone | Attached::NotYet => {}
                        }
                    }
                }
                NextAction::Done(to) => {
                    let named = named_at.unwrap_or(looked) - paused;
                    let attached_at = attached.map(|(_, at)| at);
                    let is_late = attached_at.is_none_or(|at| at > pauses.long);
                    let was_paused = attached_at.unwrap_or(named).min(pauses.long);
                    return Ok(HandedOver { to, paused: was_paused, named, since: paused, is_late });
                }
                NextAction::GaveUp => break asked.at.elapsed(),
                // If no replica is promoted yet, another Sentinel is asked only while writes are paused.
                NextAction::AskAnother
                    if promoted.is_some() || paused.elapsed() + PROMOTION < pauses.long =>
                {
                    if let Some(&index) = observation.answering.difference(&were_asked).next() {
                        were_asked.insert(index);
                        asked = FailoverRequest { index, at: Instant::now(), answered: Instant::now() };
                        let _ = self.ask_for_failover(index, Instant::now() + ANSWER).await;
                    }
                }
                NextAction::AskAnother | NextAction::Wait => {}
            }
            let over = attached.is_none()
                && promoted.is_none()
                && first_asked.elapsed() >= pauses.long.max(PROMOTED_WITHIN);
            if over || Instant::now() >= until {
                break first_asked.elapsed();
            }
            sleep(POLL).await;
        };
        let Some(promoted) = attached.map(|(to, _)| to.endpoint).or(promoted) else {
            self.unpause().await;
            return Err(Abort::NotPromoted { sentinel: self.sentinels[asked.index].clone(), after });
        };
        Err(Abort::NotNamed { promoted, after })
    }

    /// Makes the old master a replica, and then ends the pause. If the pause ended first, clients would write
    /// to the old master.
    async fn attach(&self, to: &ServerAddresses) -> Attached {
        let replicaof = [command!("REPLICAOF", to.announced.host, to.announced.port)];
        match timeout(ANSWER, self.to_master.send(&self.master.endpoint, &replicaof)).await {
            Ok(Ok(replies)) if replies[0].is_ok() => {}
            Ok(Err(_)) => return Attached::IsGone,
            Ok(Ok(_)) | Err(_) => return Attached::NotYet,
        }
        self.unpause().await;
        // A Sentinel that finds the server already attached does not send it `CONFIG REWRITE`.
        let _ = self.ask(&self.master.endpoint, &[command!("CONFIG", "REWRITE")]).await;
        Attached::Yes
    }

    /// `history`: the history and offset of the old master when writes were paused. A promoted replica
    /// continues them. This failover has not promoted a master with another history.
    async fn observe(&self, asked: &FailoverRequest, history: &History) -> Observation {
        let info = [command!("INFO", "replication")];
        let roles = self.candidates.iter().map(async |candidate| {
            let replies = match timeout(ANSWER, self.servers.redis.send(&candidate.endpoint, &info)).await {
                Ok(Ok(replies)) => replies,
                Ok(Err(_)) => return CandidateState::Gone,
                Err(_) => return CandidateState::Waits,
            };
            let replication =
                replies[0].as_ref().ok().and_then(|info| Replication::parse(&Info::parse(&text(info))));
            match replication {
                Some(Replication { role: Role::Master, history: new, .. })
                    if new.previous_id == history.id && new.previous_until > history.offset =>
                {
                    CandidateState::IsMaster(candidate)
                }
                _ => CandidateState::Waits,
            }
        });
        // Clients use either command. The Sentinel that leads answers the second one with the new address
        // only after all replicas follow the new master.
        let ask = [
            command!("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.group),
            command!("SENTINEL", "MASTER", self.group),
        ];
        let names = self.sentinels.iter().map(async |sentinel| {
            let answer = timeout(ANSWER, self.servers.sentinels.send(sentinel, &ask)).await;
            match answer {
                Ok(Ok(replies)) => SentinelAnswer::Names {
                    name: replies[0].as_ref().ok().and_then(named_address),
                    whole: replies[1].as_ref().ok().map(NamedMaster::parse),
                },
                Ok(Err(_)) => SentinelAnswer::Gone,
                Err(_) => SentinelAnswer::Silent,
            }
        });
        let (roles, names) = join(join_all(roles), join_all(names)).await;
        let votes = |seat: &ServerAddresses| {
            names
                .iter()
                .filter(
                    |name| matches!(name, SentinelAnswer::Names { name: Some(name), .. } if seat.is_at(name)),
                )
                .count()
        };
        let named = self.candidates.iter().find(|seat| votes(seat) > self.sentinels.len() / 2).cloned();
        let leader = match &names[asked.index] {
            SentinelAnswer::Names { name: Some(name), whole: Some(whole) }
                if self.master.is_at(name) && !whole.has_flag("failover_in_progress") =>
            {
                Leader::GaveUp
            }
            SentinelAnswer::Names { .. } => Leader::FailsOver,
            SentinelAnswer::Silent => Leader::Silent,
            SentinelAnswer::Gone => Leader::Gone,
        };
        let answering =
            names.iter().enumerate().filter(|(_, name)| matches!(name, SentinelAnswer::Names { .. }));
        let answering = answering.map(|(index, _)| index).collect();
        let gone = names.iter().filter(|name| matches!(name, SentinelAnswer::Gone)).count();
        Observation {
            promoted: roles.iter().find_map(|candidate| match candidate {
                CandidateState::IsMaster(seat) => Some((*seat).clone()),
                CandidateState::Waits | CandidateState::Gone => None,
            }),
            by_all: named.as_ref().is_some_and(|named| {
                let by_both = names.iter().filter(|name| {
                    let SentinelAnswer::Names { name: Some(name), whole: Some(whole) } = name else {
                        return false;
                    };
                    named.is_at(name) && named.is_at(&whole.endpoint)
                });
                by_both.count() + gone == names.len()
            }),
            named,
            leader,
            answering,
            is_hopeless: names.len() - gone <= self.sentinels.len() / 2
                || roles.iter().all(|candidate| matches!(candidate, CandidateState::Gone)),
        }
    }

    async fn replication(&self, node: &Endpoint) -> Result<Replication, Abort> {
        let replies = self.ask(node, &[command!("INFO", "replication")]).await?;
        let info = replies[0].as_ref().map_err(|error| Abort::node(node, error))?;
        let replication = Replication::parse(&Info::parse(&text(info)));
        replication.ok_or_else(|| Abort::node(node, "INFO shows no replication role"))
    }

    /// Asks a Redis server, which has to answer within [`ANSWER`].
    async fn ask(&self, node: &Endpoint, commands: &[Command]) -> Result<Vec<Reply>, Abort> {
        let connections = if *node == self.master.endpoint { &self.to_master } else { &self.servers.redis };
        match timeout(ANSWER, connections.send(node, commands)).await {
            Ok(Ok(replies)) => Ok(replies),
            Ok(Err(error)) => Err(Abort::node(node, error)),
            Err(_) => Err(Abort::Silent { node: node.clone() }),
        }
    }
}

impl ServerAddresses {
    fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.endpoint == *endpoint || self.announced == *endpoint || self.aliases.contains(endpoint)
    }
}

impl Abort {
    /// Whether the master is unchanged, and the cause may be gone a moment later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Lags { .. } | Self::TooSlow)
    }

    fn node(node: &Endpoint, what: impl fmt::Display) -> Self {
        Self::Node { node: node.clone(), what: what.to_string() }
    }
}

/// The result of an attempt to attach the old master.
enum Attached {
    Yes,
    /// The old master does not answer, or refuses.
    NotYet,
    IsGone,
}

/// The state of a candidate.
enum CandidateState<'a> {
    IsMaster(&'a ServerAddresses),
    Waits,
    Gone,
}

/// The answer of a Sentinel.
enum SentinelAnswer {
    Names { name: Option<Endpoint>, whole: Option<NamedMaster> },
    Silent,
    Gone,
}

/// How long writes are paused. The commands of the Sentinels wait too. So during a pause longer than
/// `down-after-milliseconds`, the Sentinels would mark the master as down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pauses {
    /// The pause until a Sentinel is asked.
    short: Duration,
    /// The whole pause, from its beginning, after a Sentinel was asked.
    long: Duration,
}

impl Pauses {
    fn new(down_after: Duration) -> Self {
        let longest = down_after.mul_f64(0.8);
        Self { short: longest.min(SHORT_PAUSE), long: longest.min(LONG_PAUSE) }
    }
}

/// The Sentinel that was asked last.
#[derive(Debug, Clone, Copy)]
struct FailoverRequest {
    index: usize,
    at: Instant,
    /// When the Sentinel has last answered.
    answered: Instant,
}

/// One observation of all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observation {
    /// A candidate that reports itself as a master.
    promoted: Option<ServerAddresses>,
    /// The candidate that a majority of the Sentinels reports.
    named: Option<ServerAddresses>,
    /// Whether all Sentinels that answer name the candidate in `named`.
    by_all: bool,
    leader: Leader,
    /// The Sentinels that answer. A Sentinel that does not would carry out a request at some later time.
    answering: BTreeSet<usize>,
    /// Whether no candidate is left that could be promoted, or no majority of the Sentinels.
    is_hopeless: bool,
}

/// What the Sentinel that was asked last is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leader {
    FailsOver,
    /// The Sentinel reports the old master, and is not failing over.
    GaveUp,
    Silent,
    /// Nothing listens at the Sentinel's address.
    Gone,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NextAction {
    Attach(ServerAddresses),
    Done(ServerAddresses),
    AskAnother,
    GaveUp,
    Wait,
}

/// The moments that decide what to do next.
#[derive(Debug, Clone, Copy)]
struct Moments {
    first_asked: Instant,
    /// Since when a majority has reported the new master.
    named_at: Option<Instant>,
    /// The end of the run.
    until: Instant,
}

fn next(
    observation: &Observation,
    attached: Option<&ServerAddresses>,
    now: Instant,
    asked: &FailoverRequest,
    times: Moments,
) -> NextAction {
    let may_attach = now - times.first_asked < ATTACH_WITHIN;
    let new = observation.named.as_ref().or(observation.promoted.as_ref());
    if let Some(new) = new
        && may_attach
        && attached != Some(new)
    {
        return NextAction::Attach(new.clone());
    }
    if let Some(named) = &observation.named {
        let is_late = now >= times.until || times.named_at.is_some_and(|at| now - at >= BY_ALL_WITHIN);
        return if observation.by_all || is_late {
            NextAction::Done(named.clone())
        } else {
            NextAction::Wait
        };
    }
    if observation.is_hopeless {
        return NextAction::GaveUp;
    }
    let silent_for = now.saturating_duration_since(asked.answered);
    match observation.leader {
        Leader::FailsOver => NextAction::Wait,
        Leader::GaveUp if new.is_none() => NextAction::GaveUp,
        // A replica was promoted, but this Sentinel was restarted and does not know of the failover.
        Leader::GaveUp => NextAction::AskAnother,
        Leader::Gone if silent_for >= GONE => NextAction::AskAnother,
        Leader::Silent if silent_for >= SILENT => NextAction::AskAnother,
        Leader::Gone | Leader::Silent => NextAction::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_of_writes_never_makes_the_master_s_down() {
        for (down_after, short, long) in [(300, 240, 240), (2000, 1600, 1600), (30_000, 2000, 24_000)] {
            let pauses = Pauses::new(Duration::from_millis(down_after));
            assert_eq!((pauses.short.as_millis(), pauses.long.as_millis()), (short, long));
        }
    }

    fn seat(host: u8) -> ServerAddresses {
        let endpoint = Endpoint::new(format!("10.0.0.{host}"), 6379);
        ServerAddresses { announced: endpoint.clone(), endpoint, aliases: vec![] }
    }

    #[test]
    fn the_next_action_depends_on_who_is_promoted_and_reported() {
        let start = Instant::now();
        let asked = FailoverRequest { index: 0, at: start, answered: start };
        let nothing = Observation {
            promoted: None,
            named: None,
            by_all: false,
            leader: Leader::FailsOver,
            answering: BTreeSet::new(),
            is_hopeless: false,
        };
        let after = |millis: u64, observation: &Observation, attached: Option<u8>| {
            let now = start + Duration::from_millis(millis);
            let answers = matches!(observation.leader, Leader::FailsOver | Leader::GaveUp);
            let asked = FailoverRequest { answered: if answers { now } else { start }, ..asked };
            let until = start + Duration::from_secs(30);
            let times = Moments { first_asked: start, named_at: Some(start), until };
            next(observation, attached.map(seat).as_ref(), now, &asked, times)
        };
        assert_eq!(after(100, &nothing, None), NextAction::Wait);
        let promoted = Observation { promoted: Some(seat(2)), ..nothing.clone() };
        assert_eq!(after(200, &promoted, None), NextAction::Attach(seat(2)));
        assert_eq!(after(200, &promoted, Some(2)), NextAction::Wait);
        // The roles may have changed again by then.
        assert_eq!(after(20_000, &promoted, None), NextAction::Wait);
        let named = Observation { named: Some(seat(2)), by_all: true, ..promoted.clone() };
        let by_most = Observation { by_all: false, ..named.clone() };
        assert_eq!(after(1100, &by_most, Some(2)), NextAction::Wait);
        let now = start + Duration::from_millis(1100);
        let times = Moments { first_asked: start, named_at: Some(now), until: now };
        assert_eq!(next(&by_most, Some(&seat(2)), now, &asked, times), NextAction::Done(seat(2)));
        assert_eq!(after(2000, &by_most, Some(2)), NextAction::Done(seat(2)));
        assert_eq!(after(1100, &named, Some(2)), NextAction::Done(seat(2)));
        assert_eq!(after(1100, &named, None), NextAction::Attach(seat(2)));
        assert_eq!(after(20_000, &named, None), NextAction::Done(seat(2)));
        // Another Sentinel has promoted another replica.
        let other = Observation { named: Some(seat(3)), ..promoted.clone() };
        assert_eq!(after(1500, &other, Some(2)), NextAction::Attach(seat(3)));
        let leader = |leader, observation: &Observation| Observation { leader, ..observation.clone() };
        let silent = leader(Leader::Silent, &nothing);
        assert_eq!(
            (after(2400, &silent, None), after(2500, &silent, None)),
            (NextAction::Wait, NextAction::AskAnother)
        );
        let gone = leader(Leader::Gone, &nothing);
        assert_eq!(
            (after(200, &gone, None), after(300, &gone, None)),
            (NextAction::Wait, NextAction::AskAnother)
        );
        assert_eq!(after(3000, &leader(Leader::Gone, &named), Some(2)), NextAction::Done(seat(2)));
        assert_eq!(after(10, &leader(Leader::GaveUp, &nothing), None), NextAction::GaveUp);
        assert_eq!(after(500, &leader(Leader::GaveUp, &promoted), Some(2)), NextAction::AskAnother);
        let hopeless = |observation: &Observation| Observation { is_hopeless: true, ..observation.clone() };
        assert_eq!(after(10, &hopeless(&nothing), None), NextAction::GaveUp);
        assert_eq!(after(10, &hopeless(&promoted), None), NextAction::Attach(seat(2)));
        assert_eq!(after(10, &hopeless(&promoted), Some(2)), NextAction::GaveUp);
    }
}
