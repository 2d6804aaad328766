//! Keeps the journal of a server that runs.

use std::ffi::OsString;
use std::time::Duration;

use tokio::time::sleep;

use super::journal::{AppendOnly, Holds};
use super::position::Position;
use super::registration::Registrar;
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::Replication;
use crate::node::reply::text;

/// How often it is written.
const EVERY: Duration = Duration::from_secs(1);

impl Registrar<'_> {
    /// Keeps the journal for as long as the server runs, which was to write to this part when it started. That it can't be written is
    /// said once, and is never more than that.
    pub(super) async fn keep_journal(&self, endpoint: &Endpoint, file: &AppendOnly, part: &OsString) -> ! {
        let mut holds = Holds::new(part.clone());
        let mut said = false;
        loop {
            // Before the server is asked: what it writes in between counts as growth.
            let last = file.last();
            if let Some((replication, persistence)) = self.replication_and_persistence(endpoint).await {
                let is = |field: &str| persistence.get(field) == Some("1");
                let is_rewriting = is("aof_rewrite_in_progress") || is("aof_rewrite_scheduled");
                let holds_it = holds.follow(&replication, is_rewriting, &last.0);
                let position = Position::living(&replication, &persistence).filter(|_| holds_it);
                if let Some(Err(error)) = position.map(|position| file.note(&position, &last))
                    && !said
                {
                    said = true;
                    self.report.warning(format_args!(
                        "can't write {}: {error}\nhint: without it, it is not known after a restart how far the data on this \
                         node goes; let join write into the server's folder",
                        file.journal.display()
                    ));
                }
            }
            sleep(EVERY).await;
        }
    }

    async fn replication_and_persistence(&self, endpoint: &Endpoint) -> Option<(Replication, Info)> {
        let ask = [command!("INFO", "replication"), command!("INFO", "persistence")];
        let replies = self.connections.send(endpoint, &ask).await.ok()?;
        let info = |index: usize| Some(Info::parse(&text(replies[index].as_ref().ok()?)));
        Some((Replication::parse(&info(0)?)?, info(1)?))
    }
}
