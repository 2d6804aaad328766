//! Keeps the journal of a server that runs, and tells the others what stands in it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::ask::told_by;
use super::journal::{Holds, Parts};
use super::position::Position;
use super::registration::{Registrar, StartedRedis};
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;

/// How often it is written.
const EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether it can be, while the server has no master, synchronises, or writes its append-only file anew after that:
/// until it is, nothing says how far the file goes.
const SOON: Duration = Duration::from_millis(50);

/// How often a new master is asked through which histories its data has come: it may not know yet itself.
const ASKED: usize = 10;

impl Registrar<'_> {
    /// Keeps the journal for as long as the server runs. That it can't be written is said once, and is never more than that. `told`
    /// is what the others are told.
    pub(super) async fn keep_journal(
        &self,
        endpoint: &Endpoint,
        redis: &StartedRedis,
        told: &watch::Sender<Option<Position>>,
    ) -> ! {
        let journal = &redis.journal;
        let mut holds = redis.last.clone().map(|(part, _)| Holds::new(part));
        let mut known = redis.this.position.clone();
        let mut noted: Option<(Position, Option<Parts>)> = None;
        let (mut asked, mut said) = (0, false);
        loop {
            // Before the server is asked: what it writes in between counts as growth.
            let parts = journal.parts();
            // What one that is held holds is what it found on its disk, whatever it says.
            let asked_now = self.replication_and_persistence(endpoint).await;
            let asked_now = asked_now.filter(|(replication, _)| replication.role != Role::Held);
            let mut pause = if asked_now.is_some() { SOON } else { EVERY };
            if let Some((replication, persistence)) = asked_now
                && let Some(living) = Position::living(&replication, &persistence)
                && holds_it(holds.as_mut(), &replication, &persistence, parts.as_ref())
            {
                let is_linked = !matches!(replication.role, Role::Replica { link_up: false, .. });
                let is_new = known.as_ref().is_none_or(|known| !living.meets(known));
                let position = match (&known, &replication.role) {
                    (Some(known), _) if living.meets(known) => living.with_ancestors(known),
                    (Some(known), Role::Master) => living.after(known),
                    _ => living,
                };
                asked = if is_new { 0 } else { asked };
                let position = match &replication.role {
                    Role::Replica { of, .. } if position.has_no_ancestors() && asked < ASKED => {
                        asked += 1;
                        match told_by(&self.asker.servers.redis, of).await {
                            Some(masters) => position.with_ancestors(&masters),
                            None => position,
                        }
                    }
                    _ => position,
                };
                told.send_if_modified(|told| {
                    let has_changed = told.as_ref().is_none_or(|told| !told.is_along(&position));
                    if has_changed {
                        *told = Some(position.clone());
                    }
                    has_changed
                });
                let is_noted = noted.as_ref().is_some_and(|(before, were)| match parts {
                    Some(_) => *before == position && *were == parts,
                    // Its dump says how far it goes.
                    None => before.is_along(&position),
                });
                if !is_noted {
                    match journal.note(&position, parts.as_ref()) {
                        Ok(()) => noted = Some((position.clone(), parts)),
                        Err(_) if said => {}
                        Err(error) => {
                            said = true;
                            self.report.warning(format_args!(
                                "can't write {}: {error}\nhint: without it, it is not known after a restart how far the data \
                                 on this node goes; let join write into the server's folder",
                                journal.path.display()
                            ));
                        }
                    }
                }
                known = Some(position);
                // Without its master it is about to get another data set.
                pause = if is_linked { EVERY } else { SOON };
            }
            sleep(pause).await;
        }
    }

    async fn replication_and_persistence(&self, endpoint: &Endpoint) -> Option<(Replication, Info)> {
        let ask = [command!("INFO", "replication"), command!("INFO", "persistence")];
        let replies = self.connections.send(endpoint, &ask).await.ok()?;
        let info = |index: usize| Some(Info::parse(&text(replies[index].as_ref().ok()?)));
        Some((Replication::parse(&info(0)?)?, info(1)?))
    }
}

/// Whether the append-only file, where there is one, holds the data of the server's present history.
fn holds_it(
    holds: Option<&mut Holds>,
    replication: &Replication,
    persistence: &Info,
    parts: Option<&Parts>,
) -> bool {
    let (Some(holds), Some(Parts { last: (part, _), .. })) = (holds, parts) else { return true };
    let is = |field: &str| persistence.get(field) == Some("1");
    holds.follow(replication, is("aof_rewrite_in_progress") || is("aof_rewrite_scheduled"), part)
}
