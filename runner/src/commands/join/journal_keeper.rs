//! Keeps the journal of a running server, and makes its position readable for other nodes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::ask::reported_position;
use super::journal::{FileHistory, Journal, Parts};
use super::position::Position;
use super::registration::{Registrar, StartedRedis};
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;

/// How often the journal is written.
const EVERY: Duration = Duration::from_secs(1);

/// How often to check whether the journal can be written, while the server has no master, synchronises, or
/// rewrites its append-only file after that. Until then nothing shows how far the file goes.
const SOON: Duration = Duration::from_millis(50);

/// How many times in a row the server is asked, if its append-only file is written to during the question.
const LOOKS: u32 = 3;

/// How often a new master is asked through which histories its data has come. The new master may not know
/// this at first.
const ASKED: usize = 10;

impl Registrar<'_> {
    /// Keeps the journal for as long as the server runs. If the journal can't be written, there is one
    /// warning. `own_position` is the position that other nodes can read.
    pub(super) async fn keep_journal(
        &self,
        endpoint: &Endpoint,
        redis: &StartedRedis,
        own_position: &watch::Sender<Option<Position>>,
    ) -> ! {
        let journal = &redis.journal;
        let mut holds = redis.last.clone().map(|(part, _)| FileHistory::new(part));
        let mut known = redis.this.position.clone();
        let mut noted: Option<(Position, Option<Parts>)> = None;
        let (mut asked, mut warned) = (0, false);
        loop {
            // A held server has only the data from its disk, even if its `INFO` shows another position.
            let asked_now = self.place_and_file(endpoint, journal).await;
            let asked_now =
                asked_now.filter(|PlaceAndFile { replication, .. }| replication.role != Role::Held);
            let mut pause = if asked_now.is_some() { SOON } else { EVERY };
            if let Some(PlaceAndFile { replication, persistence, parts, unwritten }) = asked_now
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
                    Role::Replica { of, .. } if position.has_one_history() && asked < ASKED => {
                        asked += 1;
                        match reported_position(&self.asker.servers.redis, of).await {
                            Some(masters) => position.with_ancestors(&masters),
                            None => position,
                        }
                    }
                    _ => position,
                };
                own_position.send_if_modified(|own_position| {
                    let has_changed = own_position
                        .as_ref()
                        .is_none_or(|own_position| !own_position.has_same_histories(&position));
                    if has_changed {
                        *own_position = Some(position.clone());
                    }
                    has_changed
                });
                let on_disk = position.clone().advanced(-unwritten, 0);
                let is_noted = noted.as_ref().is_some_and(|(before, were)| match parts {
                    Some(_) => *before == on_disk && *were == parts,
                    // The RDB file contains its own position.
                    None => before.has_same_histories(&on_disk),
                });
                if !is_noted {
                    match journal.note(&on_disk, parts.as_ref()) {
                        Ok(()) => noted = Some((on_disk, parts)),
                        Err(_) if warned => {}
                        Err(error) => {
                            warned = true;
                            self.report.warning(format_args!(
                                "can't write {}: {error}\nhint: let `join` write into the server's folder; \
                                 without this file, `join` can't tell after a restart how far this node's \
                                 data goes",
                                journal.path.display()
                            ));
                        }
                    }
                }
                known = Some(position);
                // Without a link to its master, the server may be about to get another data set.
                pause = if is_linked { EVERY } else { SOON };
            }
            sleep(pause).await;
        }
    }

    /// Asks the server for its position, and reads the length of its append-only file before and after the
    /// answer.
    async fn place_and_file(&self, endpoint: &Endpoint, journal: &Journal) -> Option<PlaceAndFile> {
        let mut tried = 0;
        loop {
            let before = journal.parts();
            let (replication, persistence) = self.replication_and_persistence(endpoint).await?;
            let after = journal.parts();
            tried += 1;
            if let Some((parts, unwritten)) = file_then(before, after, &persistence, tried == LOOKS) {
                return Some(PlaceAndFile { replication, persistence, parts, unwritten });
            }
            if tried == LOOKS {
                return None;
            }
        }
    }

    async fn replication_and_persistence(&self, endpoint: &Endpoint) -> Option<(Replication, Info)> {
        let ask = [command!("INFO", "replication"), command!("INFO", "persistence")];
        let replies = self.connections.send(endpoint, &ask).await.ok()?;
        let info = |index: usize| Some(Info::parse(&text(replies[index].as_ref().ok()?)));
        Some((Replication::parse(&info(0)?)?, info(1)?))
    }
}

/// What a server reports, and its append-only file, at one moment.
struct PlaceAndFile {
    replication: Replication,
    persistence: Info,
    parts: Option<Parts>,
    /// How many bytes of the server's data are not in the file yet.
    unwritten: i64,
}

/// The file at the time of the server's answer, and how many bytes of the server's data were not in it. With
/// `appendfsync everysec`, a server delays its writes to the file for up to two seconds while the disk is
/// slow (`flushAppendOnlyFile` in Redis's `aof.c`). `None` if the file was written to in between, because
/// then the number is unknown.
fn file_then(
    before: Option<Parts>,
    after: Option<Parts>,
    persistence: &Info,
    is_last_look: bool,
) -> Option<(Option<Parts>, i64)> {
    if before == after {
        return Some((after, persistence.number("aof_buffer_length").unwrap_or_default()));
    }
    // A server that writes all the time writes before it answers. What it has written since the answer makes
    // the noted length too long. So the file may go further than the journal shows, and not less far.
    let is_same = before.zip(after.as_ref()).is_some_and(|(before, after)| before.last.0 == after.last.0);
    (is_same && is_last_look).then_some((after, 0))
}

/// Whether the append-only file, if there is one, holds the data of the server's present history.
fn holds_it(
    holds: Option<&mut FileHistory>,
    replication: &Replication,
    persistence: &Info,
    parts: Option<&Parts>,
) -> bool {
    let (Some(holds), Some(Parts { last: (part, _), .. })) = (holds, parts) else { return true };
    let is = |field: &str| persistence.get(field) == Some("1");
    holds.follow(replication, is("aof_rewrite_in_progress") || is("aof_rewrite_scheduled"), part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size: u64) -> Option<Parts> {
        Some(Parts { base: None, last: (name.into(), size) })
    }

    #[test]
    fn what_the_server_has_yet_to_write_is_not_in_its_file() {
        let info =
            |unwritten: u32| Info::parse(&format!("aof_enabled:1\r\naof_buffer_length:{unwritten}\r\n"));
        let (old, longer, next) =
            (file("a.1.incr.aof", 100), file("a.1.incr.aof", 130), file("a.2.incr.aof", 7));
        for is_last_look in [false, true] {
            let then = |before: &Option<Parts>, after: &Option<Parts>, unwritten| {
                file_then(before.clone(), after.clone(), &info(unwritten), is_last_look)
            };
            assert_eq!(then(&old, &old, 0), Some((old.clone(), 0)));
            assert_eq!(then(&old, &old, 13_000), Some((old.clone(), 13_000)));
            // The bytes that were written in between may include bytes that the server had held back.
            assert_eq!(then(&old, &longer, 30), is_last_look.then_some((longer.clone(), 0)));
            assert_eq!(then(&old, &next, 30), None, "it was rewritten");
            assert_eq!(then(&None, &None, 0), Some((None, 0)), "there is none");
        }
        assert_eq!(file_then(old.clone(), old.clone(), &Info::default(), false), Some((old, 0)));
    }
}
