//! A plan: the changes as data, and the commands that carry them out. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use super::members::System;
use super::temporary::TemporarySetting;
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::hello::HELLO_CHANNEL;
use crate::node::redis::{self, Data, promote};
use crate::node::secret::Login;
use crate::node::unusable::Unusable;

/// What to change. [`Plan::commands`] contains the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub system: System,
    pub because: &'static str,
    /// The servers that get the replication login. The master gets it too, because it will be a replica one
    /// day.
    pub credentials: Vec<Endpoint>,
    pub replication_login: Option<Login>,
    pub attach: Vec<Attach>,
    /// The settings to set on Redis servers permanently.
    pub settings: Vec<(Endpoint, BTreeMap<String, String>)>,
    /// Whether the master has to stop following another server first.
    pub promote: bool,
    /// The held servers, each with the `replica-priority` that it gets back.
    pub release: BTreeMap<Endpoint, String>,
    /// Settings that are changed temporarily, so that the replicas are up soon.
    pub temporary: Vec<TemporarySetting>,
    /// The Sentinels that are to monitor the master. The first one decides between runners that race: it is
    /// the Sentinel with the lowest id of all, and it refuses a group that it already monitors.
    pub monitor: Vec<Endpoint>,
    /// The quorum that the Sentinels in `monitor` get.
    pub quorum: u16,
    /// The options to set, by Sentinel.
    pub configure: Vec<(Endpoint, BTreeMap<String, String>)>,
    /// The Sentinels that get the login for the Redis servers.
    pub authenticate: Vec<Endpoint>,
    pub sentinel_login: Option<Login>,
    /// The commands that the Redis servers know by another name, for every Sentinel. A Sentinel that already
    /// knows them is not changed by this.
    pub renamed: BTreeMap<String, String>,
    /// The Sentinels that do not know all other Sentinels yet.
    pub introduce: Vec<Introduction>,
    /// The connections that Sentinels which are gone permanently have left open, by server.
    pub evict: Vec<(Endpoint, Vec<u64>)>,
    /// The Sentinels that still include nodes which are gone permanently, each with the messages for after
    /// its reset: a Sentinel can only forget all nodes at once. They are reset one after the other.
    pub reset: Vec<Introduction>,
    /// The registered nodes that are left out, and why.
    pub left_out: Vec<(Endpoint, Unusable)>,
}

/// A server to make a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    pub node: Endpoint,
    /// The data of this server. The master's data replaces it.
    pub data: Data,
}

/// A Sentinel to tell about other Sentinels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    pub to: Endpoint,
    /// The messages, one per Sentinel that `to` does not know.
    pub hellos: Vec<String>,
}

impl Introduction {
    /// One `PUBLISH` per message.
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

    /// Whether a server that holds data is to be emptied. Such a plan asks the deciding Sentinel first. Any
    /// other plan attaches first: a Sentinel that sees no replica when it first reads the master reads the
    /// master again only after 10 s (`sentinel_info_period`).
    #[must_use]
    pub fn replaces_data(&self) -> bool {
        self.attach.iter().any(|attach| !attach.data.is_empty())
    }

    /// The command that goes before the command that gives a held server another role. Both are sent in one
    /// pipeline, because a rewritten configuration file would otherwise keep the priority of a held server.
    pub fn release_command(&self, node: &Endpoint) -> Option<Command> {
        Some(redis::set("replica-priority", self.release.get(node)?))
    }

    /// `REPLICAOF`, the same for every server in [`Plan::attach`].
    #[must_use]
    pub fn replicaof_command(&self) -> Command {
        let master = &self.system.master.announced;
        command!("REPLICAOF", master.host, master.port)
    }

    /// `SENTINEL MONITOR`, the same for every Sentinel in [`Plan::monitor`].
    #[must_use]
    pub fn monitor_command(&self) -> Command {
        let System { group, master, .. } = &self.system;
        let master = &master.announced;
        command!("SENTINEL", "MONITOR", group, master.host, master.port, self.quorum)
    }

    /// The commands that set the replication login, the same for every server in [`Plan::credentials`].
    /// `CONFIG SET` takes several settings only since 7.0.
    #[must_use]
    pub fn credentials_commands(&self) -> Vec<Command> {
        let Some(Login { username, password }) = &self.replication_login else { return Vec::new() };
        let username = username.as_deref().unwrap_or_default();
        vec![
            command!("CONFIG", "SET", "masteruser", username),
            command!("CONFIG", "SET", "masterauth", password.reveal()),
        ]
    }

    /// One `CONFIG SET` per setting of a server: `CONFIG SET` takes several settings only since 7.0.
    pub fn settings_commands(settings: &BTreeMap<String, String>) -> Vec<Command> {
        settings.iter().map(|(name, value)| redis::set(name, value)).collect()
    }

    /// One `CLIENT KILL` per connection on a server in [`Plan::evict`].
    pub fn evict_commands(&self, node: &Endpoint) -> Vec<Command> {
        let connections =
            self.evict.iter().filter(|(at, _)| at == node).flat_map(|(_, connections)| connections);
        connections.map(|connection| command!("CLIENT", "KILL", "ID", connection)).collect()
    }

    /// `SENTINEL RESET`, the same for every Sentinel in [`Plan::reset`].
    #[must_use]
    pub fn reset_command(&self) -> Command {
        command!("SENTINEL", "RESET", self.system.group)
    }

    /// The options that a Sentinel gets, in one `SENTINEL SET`, because a Sentinel writes its file once per
    /// command.
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
        // The names that a Sentinel already knows can't be read, so they are set every time.
        words.extend(self.renamed.iter().flat_map(|(old, new)| ["rename-command", old, new]));
        let set = ["SENTINEL", "SET", self.system.group.as_str()].into_iter().chain(words.iter().copied());
        (!words.is_empty()).then(|| Command::new(set))
    }

    /// Every command that changes something, in the order in which a single client would send them.
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
        commands.extend(self.temporary.iter().map(|setting| (setting.node.clone(), setting.set())));
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
        commands.extend(self.temporary.iter().map(|setting| (setting.node.clone(), setting.put_back())));
        commands.extend(self.changed_redis().map(|node| (node.clone(), command!("CONFIG", "REWRITE"))));
        commands
    }

    /// Whether the plan changes more than the server's role: a login or settings, which have to survive a
    /// restart.
    pub fn sets(&self, node: &Endpoint) -> bool {
        self.credentials.contains(node) || self.settings.iter().any(|(set, _)| set == node)
    }

    /// The Redis servers whose role, login or settings change, so that their configuration file has to be
    /// rewritten.
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
