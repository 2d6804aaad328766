//! A plan: what is to be changed, as data, and the commands that it comes to. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use super::members::System;
use super::momentary::Momentary;
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::hello::HELLO_CHANNEL;
use crate::node::redis::{self, Data, promote};
use crate::node::secret::Login;
use crate::node::unusable::Unusable;

/// What is to be changed, in the order in which it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub system: System,
    pub because: &'static str,
    /// The servers to be given the replication login: the master too, which will be a replica one day.
    pub credentials: Vec<Endpoint>,
    pub replication_login: Option<Login>,
    pub attach: Vec<Attach>,
    /// Settings to be given to Redis servers, for good.
    pub settings: Vec<(Endpoint, BTreeMap<String, String>)>,
    /// Whether the master has to stop following another first.
    pub promote: bool,
    /// The servers that are held, and the `replica-priority` that each of them gets back.
    pub release: BTreeMap<Endpoint, String>,
    /// Settings that are changed for a moment, so that the replicas come up soon.
    pub momentary: Vec<Momentary>,
    /// The Sentinels to give the master to. The first decides where runners race: it is the one with the lowest id of
    /// all, whatever the order of registration, and refuses a name that it has.
    pub monitor: Vec<Endpoint>,
    /// The quorum that they are given.
    pub quorum: u16,
    /// Options to be set, by Sentinel.
    pub configure: Vec<(Endpoint, BTreeMap<String, String>)>,
    /// The Sentinels to be given the login for the Redis servers.
    pub authenticate: Vec<Endpoint>,
    pub sentinel_login: Option<Login>,
    /// The commands that the Redis servers know by another name, for every Sentinel. That changes nothing for one that knows them.
    pub renamed: BTreeMap<String, String>,
    /// Sentinels that have yet to hear of others.
    pub introduce: Vec<Introduction>,
    /// The connections that Sentinels which are gone for good have left open, by server.
    pub evict: Vec<(Endpoint, Vec<u64>)>,
    /// Sentinels that count on nodes that are gone for good, and what to tell each of them once it has forgotten all: a
    /// Sentinel forgets only everything at once. One after the other.
    pub reset: Vec<Introduction>,
    /// Registered nodes that are left out, and why.
    pub left_out: Vec<(Endpoint, Unusable)>,
}

/// A server to be made a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    pub node: Endpoint,
    /// What it holds: the master's takes its place.
    pub data: Data,
}

/// A Sentinel that is to be told of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    pub to: Endpoint,
    /// The messages, one for each Sentinel that it does not know.
    pub hellos: Vec<String>,
}

impl Introduction {
    /// One `PUBLISH` for each message.
    #[must_use]
    pub fn commands(&self) -> Vec<Command> {
        self.hellos.iter().map(|hello| command!("PUBLISH", HELLO_CHANNEL, hello)).collect()
    }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.promote
            && self.credentials.is_empty()
            && self.attach.is_empty()
            && self.settings.is_empty()
            && self.monitor.is_empty()
            && self.configure.is_empty()
            && self.authenticate.is_empty()
            && self.introduce.is_empty()
            && self.reset.is_empty()
    }

    /// Whether a server that holds data is to be emptied. Such a plan takes the deciding Sentinel's word first; any
    /// other attaches first, because a Sentinel whose first look at the master shows no replica looks again only after
    /// 10 s (`sentinel_info_period`).
    #[must_use]
    pub fn replaces_data(&self) -> bool {
        self.attach.iter().any(|attach| !attach.data.is_empty())
    }

    /// What goes before the command that makes a held server something else: in one pipeline with it, since a rewritten
    /// configuration file would keep the priority of a held one.
    pub fn release_command(&self, node: &Endpoint) -> Option<Command> {
        Some(redis::set("replica-priority", self.release.get(node)?))
    }

    /// `REPLICAOF`, for every server in [`Plan::attach`].
    #[must_use]
    pub fn replicaof_command(&self) -> Command {
        let master = &self.system.master.announced;
        command!("REPLICAOF", master.host, master.port)
    }

    /// `SENTINEL MONITOR`, for every Sentinel in [`Plan::monitor`].
    #[must_use]
    pub fn monitor_command(&self) -> Command {
        let System { group, master, .. } = &self.system;
        let master = &master.announced;
        command!("SENTINEL", "MONITOR", group, master.host, master.port, self.quorum)
    }

    /// The commands that give a server the replication login, for every one in [`Plan::credentials`]. Several settings in
    /// one `CONFIG SET` are understood since 7.0 only.
    #[must_use]
    pub fn credentials_commands(&self) -> Vec<Command> {
        let Some(Login { username, password }) = &self.replication_login else { return Vec::new() };
        let username = username.as_deref().unwrap_or_default();
        vec![
            command!("CONFIG", "SET", "masteruser", username),
            command!("CONFIG", "SET", "masterauth", password.reveal()),
        ]
    }

    /// `CONFIG SET`, for every setting that a server is to be given: several at once are understood since 7.0 only.
    pub fn settings_commands(settings: &BTreeMap<String, String>) -> Vec<Command> {
        settings.iter().map(|(name, value)| redis::set(name, value)).collect()
    }

    /// `CLIENT KILL`, for every connection on a server in [`Plan::evict`].
    pub fn evict_commands(&self, node: &Endpoint) -> Vec<Command> {
        let connections =
            self.evict.iter().filter(|(at, _)| at == node).flat_map(|(_, connections)| connections);
        connections.map(|connection| command!("CLIENT", "KILL", "ID", connection)).collect()
    }

    /// `SENTINEL RESET`, for every Sentinel in [`Plan::reset`].
    #[must_use]
    pub fn reset_command(&self) -> Command {
        command!("SENTINEL", "RESET", self.system.group)
    }

    /// The options that a Sentinel is to be given, in one `SENTINEL SET`, because each costs it one write of its file.
    #[must_use]
    pub fn set_command(&self, sentinel: &Endpoint) -> Option<Command> {
        let options = self.configure.iter().filter(|(to, _)| to == sentinel).flat_map(|(_, options)| options);
        let mut words: Vec<&str> = options.flat_map(|(name, value)| [name.as_str(), value]).collect();
        if let Some(Login { username, password }) = &self.sentinel_login
            && self.authenticate.contains(sentinel)
        {
            words.extend(username.iter().flat_map(|username| ["auth-user", username]));
            words.extend(["auth-pass", password.reveal()]);
        }
        // What it knows of them can't be read.
        words.extend(self.renamed.iter().flat_map(|(old, new)| ["rename-command", old, new]));
        let set = ["SENTINEL", "SET", self.system.group.as_str()].into_iter().chain(words.iter().copied());
        (!words.is_empty()).then(|| Command::new(set))
    }

    /// Every command that changes anything, in the order in which a single client would send them.
    #[must_use]
    pub fn commands(&self) -> Vec<(Endpoint, Command)> {
        let master = || self.system.master.endpoint.clone();
        let mut commands: Vec<_> = self
            .credentials
            .iter()
            .flat_map(|node| self.credentials_commands().into_iter().map(|command| (node.clone(), command)))
            .collect();
        if self.promote {
            commands.extend(self.release_command(&master()).map(|command| (master(), command)));
            commands.push((master(), promote()));
        }
        commands.extend(self.momentary.iter().map(|setting| (setting.node.clone(), setting.set())));
        let attach = self.attach.iter().flat_map(|attach| {
            let words = self.release_command(&attach.node).into_iter().chain([self.replicaof_command()]);
            words.map(|command| (attach.node.clone(), command))
        });
        let decide = self.monitor.first().map(|decider| (decider.clone(), self.monitor_command()));
        if self.replaces_data() {
            commands.extend(decide.into_iter().chain(attach));
        } else {
            commands.extend(attach.chain(decide));
        }
        commands
            .extend(self.monitor.iter().skip(1).map(|sentinel| (sentinel.clone(), self.monitor_command())));
        for sentinel in self.system.sentinels.iter().map(|sentinel| &sentinel.endpoint) {
            commands.extend(self.set_command(sentinel).map(|command| (sentinel.clone(), command)));
        }
        for (node, settings) in &self.settings {
            commands.extend(Self::settings_commands(settings).into_iter().map(|set| (node.clone(), set)));
        }
        for introduction in &self.introduce {
            commands.extend(
                introduction.commands().into_iter().map(|command| (introduction.to.clone(), command)),
            );
        }
        for (node, _) in &self.evict {
            commands.extend(self.evict_commands(node).into_iter().map(|command| (node.clone(), command)));
        }
        for introduction in &self.reset {
            let reset = std::iter::once(self.reset_command()).chain(introduction.commands());
            commands.extend(reset.map(|command| (introduction.to.clone(), command)));
        }
        commands.extend(self.momentary.iter().map(|setting| (setting.node.clone(), setting.put_back())));
        commands.extend(self.changed_redis().map(|node| (node.clone(), command!("CONFIG", "REWRITE"))));
        commands
    }

    /// Whether a server is given anything but a role that it has to keep.
    pub fn sets(&self, node: &Endpoint) -> bool {
        self.credentials.contains(node) || self.settings.iter().any(|(set, _)| set == node)
    }

    /// The Redis servers whose role, login or settings change, and with it what their configuration file should say.
    pub fn changed_redis(&self) -> impl Iterator<Item = &Endpoint> {
        let promoted = self.promote.then_some(&self.system.master.endpoint);
        let attached = self.attach.iter().map(|attach| &attach.node);
        let set = self.settings.iter().map(|(node, _)| node);
        promoted
            .into_iter()
            .chain(attached)
            .chain(set)
            .chain(&self.credentials)
            .collect::<BTreeSet<_>>()
            .into_iter()
    }
}
