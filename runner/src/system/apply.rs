//! Acting: carries a plan out, everything that does not depend on each other at once.

use std::time::Duration;

use futures::future::{join_all, try_join_all, try_join3};
use tokio::time::Instant;

use super::momentary::Cleanup;
use super::plan::{Attach, Introduction, Plan};
use super::servers::Servers;
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

/// How long the master may take to hear of its replicas before the Sentinels are told of it all the same.
const REPLICAS_SEEN_WITHIN: Duration = Duration::from_secs(1);

/// For how long it is asked for them again and again: they are there within two milliseconds, as a rule.
const REPLICAS_EXPECTED_WITHIN: Duration = Duration::from_millis(5);

/// How often after that.
const REPLICAS_POLL: Duration = Duration::from_millis(1);

/// How long a Sentinel that was reset may take to find the replicas: its INFO period, and a little.
const FOUND_WITHIN: Duration = Duration::from_secs(15);

/// How often it is asked for them.
const RESET_POLL: Duration = Duration::from_millis(50);

/// What a Sentinel says that can't write its file (`sentinelFlushConfigAndReply` in Redis's `sentinel.c`).
const NOT_SAVED: &str = "Failed to save config file";

/// What a server answers to `CONFIG REWRITE` that was started without a file (Redis 7.0's `config.c`).
const NO_FILE: &str = "running without a config file";

/// Why a plan was not carried out to its end. What was done so far is safe: a new plan takes it up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Setback {
    /// Something is not as it was observed: another runner was quicker, or a node is gone.
    #[error("{node}: {what}")]
    Changed {
        node: Endpoint,
        /// What the plan did not foresee.
        what: String,
    },
    /// A node does not do what it has to, and will not by itself.
    #[error("{node}: {what}")]
    Unusable { node: Endpoint, what: String, hint: String },
}

/// Carries out a plan. What it changes for a moment has to be in `cleanup` before.
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
    // All at once, and nothing between this and `REPLICAOF`.
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
    // Only now that all of them have answered: a Sentinel never forgets one that it was told of.
    try_join_all(plan.introduce.iter().map(|introduction| introduce(sentinels, introduction))).await?;
    // What is closed already is no client any more.
    try_join_all(
        plan.evict
            .iter()
            .map(async |(node, _)| send(redis, node, &plan.evict_commands(node)).await.map(drop)),
    )
    .await?;
    // One after the other: whatever happens to the master meanwhile, the others can deal with it.
    for introduction in &plan.reset {
        reset(sentinels, plan, introduction).await?;
    }
    Ok(())
}

/// Writes the new roles into the servers' configuration files. Returns those that have none, or can't write it. `join` asks for a server's
/// role with every start: behind it, a server without a file will have to be told again only of other settings.
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

/// Takes the deciding Sentinel's word: it refuses a name that another runner has given it meanwhile.
async fn ask_decider(connections: &Connections, plan: &Plan) -> Result<(), Setback> {
    match plan.monitor.first() {
        Some(decider) => monitor(connections, plan, decider).await,
        None => Ok(()),
    }
}

/// Gives one Sentinel the master and its options, in one pipeline: before Redis 7.0 it keeps the connection that it has
/// made without the password.
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

/// A Sentinel that can't write its file says so, and has the master all the same, until it restarts. It has to forget it:
/// or the next run would find nothing to do.
async fn take_back(connections: &Connections, plan: &Plan, sentinel: &Endpoint, reply: &Reply) {
    if reply.as_ref().is_err_and(|error| error.detail.contains(NOT_SAVED)) {
        // It is answered with the same error; what counts is that the master is forgotten.
        let _ = send_one(connections, sentinel, command!("SENTINEL", "REMOVE", plan.system.group)).await;
    }
}

/// Attaches all replicas, and waits until the master knows of them, which is what a Sentinel's first look at it must
/// find.
async fn attach(connections: &Connections, plan: &Plan, cleanup: &Cleanup) -> Result<(), Setback> {
    if plan.attach.is_empty() {
        return Ok(());
    }
    try_join_all(plan.attach.iter().map(|attach| async {
        let node = &attach.node;
        let momentary: Vec<_> = plan.momentary.iter().filter(|setting| setting.node == *node).collect();
        let set = momentary.iter().map(|setting| setting.set());
        let release = plan.release_command(node);
        let commands: Vec<_> = set.chain(release).chain([plan.replicaof_command()]).collect();
        let replies = send(connections, node, &commands).await?;
        let (attached, set) = replies.split_last().expect("one reply for each command");
        for (setting, _) in momentary.iter().zip(set).filter(|(_, reply)| reply.is_err()) {
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
    // A replica that takes longer is found by the Sentinels' next look, and by the verification.
    tokio::time::timeout(REPLICAS_SEEN_WITHIN, seen).await.unwrap_or(Ok(()))
}

/// Tells the master not to wait for more replicas. Where this is not allowed, the replicas only come up later.
async fn do_not_delay(redis: &Connections, plan: &Plan, cleanup: &Cleanup) -> Result<(), Setback> {
    let master = &plan.system.master.endpoint;
    for setting in plan.momentary.iter().filter(|setting| setting.node == *master) {
        if send_one(redis, master, setting.set()).await?.is_err() {
            cleanup.forget(master, setting.name);
        }
    }
    Ok(())
}

/// Looks once more at what `REPLICAOF` would destroy. Reading all nodes takes as long as the slowest of them, and meanwhile
/// another runner may have made a system of them that is in use by now.
async fn still_without_data(redis: &Connections, plan: &Plan) -> Result<(), Setback> {
    // The keys last: they are what a client adds.
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

/// Whether the Sentinels that the plan takes for new still are. Where a server with data is attached the deciding one has
/// been asked before.
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

/// Gives one Sentinel, which is not the deciding one, what it lacks.
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

/// Tells one Sentinel of the others. What it answers does not matter: without it they meet within two seconds.
async fn introduce(connections: &Connections, introduction: &Introduction) -> Result<(), Setback> {
    send(connections, &introduction.to, &introduction.commands()).await.map(drop)
}

/// Has one Sentinel forget all other nodes, tells it of the Sentinels, and waits until it has found the replicas, which it
/// does with its next look at the master.
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

/// `+OK`, also with a comment behind it (`OK Already connected to specified master`).
fn expect_ok(
    connections: &Connections,
    node: &Endpoint,
    command: &str,
    reply: &Reply,
) -> Result<(), Setback> {
    match reply {
        Ok(_) => Ok(()),
        // It was not loading, nor failing over, when it was observed.
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
