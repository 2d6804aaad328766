//! Carries a plan out. Steps that do not depend on each other run concurrently.

use std::time::Duration;

use futures::future::{join_all, try_join_all, try_join3};
use tokio::time::Instant;

use super::plan::{Attach, Introduction, Plan};
use super::servers::Servers;
use super::temporary::Cleanup;
use super::timings::Phase;
use crate::node::clients;
use crate::node::command::{Command, command};
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::redis::{Data, promote};
use crate::node::replication::{Replication, Role};
use crate::node::reply::{Reply, ServerError, text};
use crate::node::sentinel::peers;
use crate::node::unusable::Unusable;

/// How long to wait until the master knows its replicas. After that the Sentinels get the master anyway.
const REPLICAS_SEEN_WITHIN: Duration = Duration::from_secs(1);

/// How long the master is asked for its replicas without a pause. It usually knows them within two
/// milliseconds.
const REPLICAS_EXPECTED_WITHIN: Duration = Duration::from_millis(5);

/// How often the master is asked after that.
const REPLICAS_POLL: Duration = Duration::from_millis(1);

/// How long a Sentinel may take after a reset to find the replicas: its INFO period and a little more.
const FOUND_WITHIN: Duration = Duration::from_secs(15);

/// How often a Sentinel is asked for these replicas.
const RESET_POLL: Duration = Duration::from_millis(50);

/// The error of a Sentinel that can't write its file (`sentinelFlushConfigAndReply` in Redis's `sentinel.c`).
const NOT_SAVED: &str = "Failed to save config file";

/// The error with which a server without a configuration file answers `CONFIG REWRITE` (Redis 7.0's
/// `config.c`).
const NO_FILE: &str = "running without a config file";

/// Why a plan was not carried out completely. The steps so far are safe, and a new plan continues from them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Setback {
    /// A node's state has changed since it was observed: another runner has changed the node, or the node is
    /// gone.
    #[error("{node}: {what}")]
    Changed {
        node: Endpoint,
        /// How the node differs from the plan.
        what: String,
    },
    /// A node fails to do its part, and a retry would not help.
    #[error("{node}: {what}")]
    Unusable { node: Endpoint, what: String, hint: String },
}

/// Carries out a plan. Every setting that the plan changes temporarily has to be in `cleanup` before.
///
/// # Errors
///
/// At the first [`Setback`] of each step.
pub async fn apply(servers: &Servers, plan: &Plan, cleanup: &Cleanup) -> Result<(), Setback> {
    let Servers { redis, sentinels, timings } = servers;
    let master = &plan.system.master.endpoint;
    timings.enter(Phase::Prepare);
    try_join_all(plan.credentials.iter().map(|node| async {
        for reply in send(redis, node, &plan.credentials_commands()).await? {
            expect_ok(redis, node, "CONFIG SET masteruser, masterauth", &reply)?;
        }
        Ok(())
    }))
    .await?;
    if plan.promote {
        let commands: Vec<_> = plan.release_command(master).into_iter().chain([promote()]).collect();
        let replies = send(redis, master, &commands).await?;
        expect_ok(redis, master, "REPLICAOF NO ONE", replies.last().expect("one reply for each command"))?;
    }
    if plan.replaces_data() {
        timings.enter(Phase::Monitor);
        ask_decider(sentinels, plan).await?;
        timings.enter(Phase::Prepare);
    }
    // All three at once and directly before `REPLICAOF`, so that as little as possible changes in between.
    try_join3(
        do_not_delay(redis, plan, cleanup),
        still_unwatched(sentinels, plan),
        still_without_data(redis, plan),
    )
    .await?;
    timings.enter(Phase::Attach);
    attach(redis, plan, cleanup).await?;
    timings.enter(Phase::Monitor);
    if !plan.replaces_data() {
        ask_decider(sentinels, plan).await?;
    }
    try_join_all(plan.system.sentinels.iter().map(|sentinel| configure(sentinels, plan, &sentinel.endpoint)))
        .await?;
    try_join_all(plan.settings.iter().map(|(node, settings)| async {
        let commands = Plan::settings_commands(settings);
        let replies = send(redis, node, &commands).await?;
        for (command, reply) in commands.iter().zip(&replies) {
            expect_ok(redis, node, &command.shown(), reply)?;
        }
        Ok(())
    }))
    .await?;
    timings.enter(Phase::Introduce);
    // The hellos are sent only after all Sentinels have answered, because a Sentinel never forgets a Sentinel
    // from a hello.
    try_join_all(plan.introduce.iter().map(|introduction| introduce(sentinels, introduction))).await?;
    // The replies are ignored: a connection that has closed is no longer a client.
    try_join_all(
        plan.evict
            .iter()
            .map(async |(node, _)| send(redis, node, &plan.evict_commands(node)).await.map(drop)),
    )
    .await?;
    // The Sentinels are reset one after the other. If the master fails during a reset, the other Sentinels
    // can fail over.
    for introduction in &plan.reset {
        reset(sentinels, plan, introduction).await?;
    }
    Ok(())
}

/// Writes the new roles into the servers' configuration files. Returns the servers that have no file or can't
/// write it. Behind `join`, which asks for the role at every start, a server without a file is returned only
/// if the plan has set other settings on it.
pub async fn persist(connections: &Connections, plan: &Plan) -> Vec<(Endpoint, String)> {
    let rewrite = plan.changed_redis().map(|node| async move {
        let commands = [command!("CONFIG", "REWRITE"), clients::subscribers()];
        let replies = match send(connections, node, &commands).await {
            Ok(replies) => replies,
            Err(setback) => return Some((node.clone(), setback.to_string())),
        };
        let Some(Err(error)) = replies.first() else { return None };
        let is_behind_join = replies
            .get(1)
            .is_some_and(|reply| reply.as_ref().is_ok_and(|clients| clients::held_by(clients).is_some()));
        let has_no_file = error.detail.contains(NO_FILE);
        (!is_behind_join || !has_no_file || plan.sets(node)).then(|| (node.clone(), error.to_string()))
    });
    join_all(rewrite).await.into_iter().flatten().collect()
}

/// Asks the deciding Sentinel: it refuses the group if another runner has set it there in the meantime.
async fn ask_decider(connections: &Connections, plan: &Plan) -> Result<(), Setback> {
    match plan.monitor.first() {
        Some(decider) => monitor(connections, plan, decider).await,
        None => Ok(()),
    }
}

/// Sets the master and the options on one Sentinel, in one pipeline: before Redis 7.0, a Sentinel keeps a
/// connection that it has made without the password.
async fn monitor(connections: &Connections, plan: &Plan, sentinel: &Endpoint) -> Result<(), Setback> {
    let set = plan.set_command(sentinel);
    let commands: Vec<_> = std::iter::once(plan.monitor_command()).chain(set.clone()).collect();
    let mut replies = send(connections, sentinel, &commands).await?.into_iter();
    if let Some(reply) = replies.next() {
        take_back(connections, plan, sentinel, &reply).await;
        expect_monitoring(connections, sentinel, &reply)?;
    }
    match (set, replies.next()) {
        (Some(set), Some(Err(error))) => Err(unusable(connections, sentinel, &set.shown(), error)),
        _ => Ok(()),
    }
}

/// A Sentinel that can't write its file answers with an error, but monitors the master until it restarts. It
/// has to forget the master. Otherwise the next run would find nothing to do.
async fn take_back(connections: &Connections, plan: &Plan, sentinel: &Endpoint, reply: &Reply) {
    if reply.as_ref().is_err_and(|error| error.detail.contains(NOT_SAVED)) {
        // The reply is the same error again. It is ignored, because the Sentinel forgets the master even so.
        let _ = send_one(connections, sentinel, command!("SENTINEL", "REMOVE", plan.system.group)).await;
    }
}

/// Attaches all replicas, and waits until the master knows them, so that a Sentinel finds them when it first
/// reads the master.
async fn attach(connections: &Connections, plan: &Plan, cleanup: &Cleanup) -> Result<(), Setback> {
    if plan.attach.is_empty() {
        return Ok(());
    }
    try_join_all(plan.attach.iter().map(|attach| async {
        let node = &attach.node;
        let temporary: Vec<_> = plan.temporary.iter().filter(|setting| setting.node == *node).collect();
        let set = temporary.iter().map(|setting| setting.set());
        let release = plan.release_command(node);
        let commands: Vec<_> = set.chain(release).chain([plan.replicaof_command()]).collect();
        let replies = send(connections, node, &commands).await?;
        let (attached, set) = replies.split_last().expect("one reply for each command");
        for (setting, _) in temporary.iter().zip(set).filter(|(_, reply)| reply.is_err()) {
            cleanup.forget(node, setting.name);
        }
        expect_ok(connections, node, "REPLICAOF", attached)
    }))
    .await?;

    let master = &plan.system.master.endpoint;
    let begun = Instant::now();
    let seen = async {
        loop {
            let info = send_one(connections, master, command!("INFO", "replication")).await?;
            let info =
                Info::parse(&text(&info.map_err(|error| unusable(connections, master, "INFO", error))?));
            let replication = Replication::parse(&info);
            let replication = replication.filter(|replication| replication.role == Role::Master);
            let Some(replication) = replication else {
                return Err(Setback::Changed {
                    node: master.clone(),
                    what: "another runner has made this server a replica".into(),
                });
            };
            if replication.replicas.len() >= plan.system.replicas.len() {
                return Ok(());
            }
            if begun.elapsed() > REPLICAS_EXPECTED_WITHIN {
                tokio::time::sleep(REPLICAS_POLL).await;
            }
        }
    };
    // A replica that takes longer is found when the Sentinels read the master again, and by the verification.
    tokio::time::timeout(REPLICAS_SEEN_WITHIN, seen).await.unwrap_or(Ok(()))
}

/// Sets `repl-diskless-sync-delay` so that the master does not wait for more replicas. Without the right to
/// it, the replicas are up later.
async fn do_not_delay(redis: &Connections, plan: &Plan, cleanup: &Cleanup) -> Result<(), Setback> {
    let master = &plan.system.master.endpoint;
    for setting in plan.temporary.iter().filter(|setting| setting.node == *master) {
        if send_one(redis, master, setting.set()).await?.is_err() {
            cleanup.forget(master, setting.name);
        }
    }
    Ok(())
}

/// Reads once more what `REPLICAOF` would destroy. Reading all nodes takes as long as the slowest node. In
/// that time, another runner may have made a system of these nodes, and clients may be using it.
async fn still_without_data(redis: &Connections, plan: &Plan) -> Result<(), Setback> {
    // The keys are read last, because clients add keys.
    let sections = &[command!("INFO", "memory"), command!("INFO", "keyspace")];
    try_join_all(plan.attach.iter().map(|Attach { node, data: observed }| async move {
        let mut info = Vec::new();
        for reply in send(redis, node, sections).await? {
            let reply = reply.map_err(|error| unusable(redis, node, "INFO", error))?;
            info.push(Info::parse(&text(&reply)));
        }
        let [memory, keyspace] = info.as_slice() else { unreachable!("one reply for each command") };
        if Data::parse(keyspace, memory).exceeds(*observed) {
            return Err(Setback::Changed {
                node: node.clone(),
                what: "has received data in the meantime".into(),
            });
        }
        Ok(())
    }))
    .await
    .map(drop)
}

/// Checks that the Sentinels that the plan takes for new are still new. If the plan attaches a server with
/// data, the deciding Sentinel has already accepted the group.
async fn still_unwatched(sentinels: &Connections, plan: &Plan) -> Result<(), Setback> {
    if plan.attach.is_empty() || plan.replaces_data() {
        return Ok(());
    }
    let group = &plan.system.group;
    try_join_all(plan.monitor.iter().map(|sentinel| async move {
        match send_one(sentinels, sentinel, command!("SENTINEL", "MASTER", group)).await? {
            Err(error) if error.detail.starts_with("No such master") => Ok(()),
            Err(error) => Err(unusable(sentinels, sentinel, "SENTINEL MASTER", error)),
            Ok(_) => Err(another_runner(sentinel)),
        }
    }))
    .await
    .map(drop)
}

/// Sets the missing settings on one Sentinel. The deciding Sentinel is already done.
async fn configure(connections: &Connections, plan: &Plan, sentinel: &Endpoint) -> Result<(), Setback> {
    match plan.monitor.iter().position(|new| new == sentinel) {
        Some(0) => return Ok(()),
        Some(_) => return monitor(connections, plan, sentinel).await,
        None => {}
    }
    let Some(set) = plan.set_command(sentinel) else { return Ok(()) };
    match send_one(connections, sentinel, set.clone()).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(unusable(connections, sentinel, &set.shown(), error)),
    }
}

/// Introduces the other Sentinels to one Sentinel. The replies are ignored, because the Sentinels would
/// discover each other within two seconds anyway.
async fn introduce(connections: &Connections, introduction: &Introduction) -> Result<(), Setback> {
    send(connections, &introduction.to, &introduction.commands()).await.map(drop)
}

/// Makes one Sentinel forget all other nodes, and introduces the other Sentinels to it. Waits until it has
/// found the replicas with its next `INFO` of the master.
async fn reset(connections: &Connections, plan: &Plan, introduction: &Introduction) -> Result<(), Setback> {
    let sentinel = &introduction.to;
    let commands: Vec<_> = std::iter::once(plan.reset_command()).chain(introduction.commands()).collect();
    let replies = send(connections, sentinel, &commands).await?;
    if let Some(Err(error)) = replies.first() {
        return Err(unusable(connections, sentinel, &plan.reset_command().shown(), error.clone()));
    }
    let found = async {
        loop {
            let list =
                send_one(connections, sentinel, command!("SENTINEL", "REPLICAS", plan.system.group)).await?;
            let list = list.map_err(|error| unusable(connections, sentinel, "SENTINEL REPLICAS", error))?;
            if peers(&list).len() >= plan.system.replicas.len() {
                return Ok(());
            }
            tokio::time::sleep(RESET_POLL).await;
        }
    };
    tokio::time::timeout(FOUND_WITHIN, found).await.unwrap_or_else(|_| {
        Err(Setback::Changed { node: sentinel.clone(), what: "has not found the replicas again".into() })
    })
}

async fn send(
    connections: &Connections,
    node: &Endpoint,
    commands: &[Command],
) -> Result<Vec<Reply>, Setback> {
    connections.send(node, commands).await.map_err(|error| {
        match Unusable::from_connection(connections.kind(), error) {
            problem if problem.may_pass() => {
                Setback::Changed { node: node.clone(), what: problem.to_string() }
            }
            problem => {
                Setback::Unusable { node: node.clone(), what: problem.to_string(), hint: problem.hint() }
            }
        }
    })
}

async fn send_one(connections: &Connections, node: &Endpoint, command: Command) -> Result<Reply, Setback> {
    let mut replies = send(connections, node, &[command]).await?;
    Ok(replies.remove(0))
}

fn unusable(connections: &Connections, node: &Endpoint, command: &str, error: ServerError) -> Setback {
    let what = format!("`{command}` was answered with `{error}`");
    let hint = if error.detail.contains(NOT_SAVED) {
        "let the Sentinel write its configuration file and the folder of the file; its log shows the cause"
            .into()
    } else {
        Unusable::from_reply(connections.kind(), error).hint()
    };
    Setback::Unusable { node: node.clone(), what, hint }
}

/// `+OK`, possibly with a comment after it (`OK Already connected to specified master`).
fn expect_ok(
    connections: &Connections,
    node: &Endpoint,
    command: &str,
    reply: &Reply,
) -> Result<(), Setback> {
    match reply {
        Ok(_) => Ok(()),
        // The node was neither loading nor failing over when it was observed.
        Err(error) if error.code == "LOADING" || error.detail.contains("while failing over") => {
            Err(Setback::Changed { node: node.clone(), what: error.to_string() })
        }
        Err(error) => Err(unusable(connections, node, command, error.clone())),
    }
}

fn expect_monitoring(connections: &Connections, node: &Endpoint, reply: &Reply) -> Result<(), Setback> {
    match reply {
        Ok(_) => Ok(()),
        // `Duplicated master name` before Redis 7.
        Err(error) if error.detail.starts_with("Duplicate") => Err(Setback::Changed {
            node: node.clone(),
            what: "another runner has given this Sentinel a master in the meantime".into(),
        }),
        Err(error) => Err(unusable(connections, node, "SENTINEL MONITOR", error.clone())),
    }
}

fn another_runner(sentinel: &Endpoint) -> Setback {
    Setback::Changed {
        node: sentinel.clone(),
        what: "another runner has given this Sentinel a master in the meantime".into(),
    }
}
