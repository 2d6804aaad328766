//! A Sentinel that started alone, because no node knew of a system, goes on asking. The broker may have lost
//! its store, and learns of the other nodes when they next register.

use std::collections::BTreeSet;

use broker_fn::api::Group;
use tokio::time::sleep;

use super::decide::{Start, This, how_to_start};
use super::launch::is_usable_here;
use super::registration::{OUTCOME_POLL, Registrar, jittered};
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::sentinel::BY_NAME;

impl Registrar<'_> {
    /// Makes the Sentinel monitor what a majority of the others monitors. Ends when the Sentinel monitors the
    /// group, even if a runner has configured it.
    pub(super) async fn find_system(&self, endpoint: &Endpoint) {
        let (mut pause, mut heard_before) = (OUTCOME_POLL.0, None);
        loop {
            sleep(jittered(pause)).await;
            pause = pause.mul_f64(1.5).min(OUTCOME_POLL.1);
            let (heard, group) = self.asker.ask(&BTreeSet::new()).await;
            let Some(group) = group else { continue };
            if self.send(endpoint, command!("SENTINEL", "MASTER", group)).await.is_ok() {
                return;
            }
            let start = how_to_start(&heard, This::Sentinel { monitors: false }, self.expected);
            // A bootstrap that is in progress configures the Sentinel itself. So an answer is used only if
            // the next answer is the same.
            if heard_before.as_ref() == Some(&start) {
                self.monitor(endpoint, &group, &start).await;
            }
            if matches!(start, Start::Monitor { .. }) {
                pause = OUTCOME_POLL.0;
            }
            heard_before = Some(start);
        }
    }

    async fn monitor(&self, endpoint: &Endpoint, group: &Group, start: &Start) {
        let Start::Monitor { master, quorum, options, .. } = start else { return };
        let access = self.asker.servers.redis.access();
        let mut commands = Vec::new();
        if master.is_name() {
            commands.extend(BY_NAME.map(|name| command!("SENTINEL", "CONFIG", "SET", name, "yes")));
        }
        commands.push(command!("SENTINEL", "MONITOR", group, master.host, master.port, quorum));
        let usable = options.iter().filter(|(name, value)| is_usable_here(name, value));
        let mut words: Vec<&str> = usable.flat_map(|(name, value)| [name.as_str(), value]).collect();
        let login = access.login_now();
        if let Some(login) = &login {
            words.extend(login.username.iter().flat_map(|username| ["auth-user", username]));
            words.extend(["auth-pass", login.password.reveal()]);
        }
        words.extend(access.renamed.iter().flat_map(|(old, new)| ["rename-command", old, new]));
        if !words.is_empty() {
            commands.push(Command::new(["SENTINEL", "SET", group.as_str()].into_iter().chain(words)));
        }
        for command in commands {
            let shown = command.shown();
            if let Err(why) = self.send(endpoint, command).await {
                self.report.warning(format_args!("the Sentinel rejected `{shown}`: {why}"));
                return;
            }
        }
        self.report.event(format_args!(
            "a majority of the Sentinels monitors {master}: this Sentinel now monitors the same master, \
             with quorum {quorum}"
        ));
    }
}
