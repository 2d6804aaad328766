//! Keeps the journal of a server that runs.

use std::future::pending;
use std::time::Duration;

use tokio::time::sleep;

use super::journal::Holds;
use super::registration::Registrar;
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;

/// How often it is written.
const EVERY: Duration = Duration::from_secs(1);

impl Registrar<'_> {
    /// Keeps the journal for as long as the server runs. That it can't be written is said once, and is never more than that.
    pub(super) async fn keep_journal(&self, endpoint: &Endpoint) -> ! {
        let Some((file, part)) = &self.append_only else {
            loop {
                pending::<()>().await;
            }
        };
        let mut holds = Holds::new(part.clone());
        let mut said = false;
        loop {
            // Before the server is asked: what it writes in between counts as growth.
            let last = file.last();
            let ask = [command!("INFO", "replication"), command!("INFO", "persistence")];
            if let Ok(replies) = self.connections.send(endpoint, &ask).await
                && let [Ok(replication), Ok(persistence)] = replies.as_slice()
                && let Some(replication) = Replication::parse(&Info::parse(&text(replication)))
            {
                let persistence = Info::parse(&text(persistence));
                let is = |field: &str| persistence.get(field) == Some("1");
                let is_rewriting = is("aof_rewrite_in_progress") || is("aof_rewrite_scheduled");
                let is_whole = !is("loading") && !is("async_loading") && !replication.is_synchronising;
                if is_whole && holds.follow(&replication, is_rewriting, &last.0) {
                    let offset = match replication.role {
                        Role::Replica { .. } => replication.applied.unwrap_or_default(),
                        Role::Master | Role::Held => replication.history.offset,
                    };
                    let noted = file.note(&replication.history.id, offset, &last);
                    if let Err(error) = noted
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
            }
            sleep(EVERY).await;
        }
    }
}
