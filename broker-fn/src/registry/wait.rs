//! Waiting for a roster to change. What another request of the same instance changes is seen within milliseconds, and the store
//! is not read for it; what others change, by a look at the revision now and then.

use std::time::Duration;

use super::keys::Shard;
use super::{EncodedMembers, Registry, Store, StoreError};
use crate::api::Group;

/// How long after a look at the store the next one is due: half of the time that the revision has stood, within these. Nodes that
/// start together register within moments of each other, and while many ask there are several instances; later there is one, if one host.
const LOOK: (Duration, Duration) = (Duration::from_millis(32), Duration::from_millis(1200));

/// How often the store is looked at for one request, however much changes meanwhile.
const MAX_LOOKS: usize = 64;

/// How often it is looked for whether this instance has changed something: a fiftieth of the time that has been waited, within these.
const PAUSE: (Duration, Duration) = (Duration::from_micros(2500), Duration::from_millis(20));

impl<S: Store> Registry<S> {
    /// What `group` holds, as it is sent: as soon as that is not `known`, or else once this time has passed. Where there is no more room
    /// among those that wait, or this host can't wait, that is at once.
    ///
    /// # Errors
    ///
    /// As of [`Self::members`].
    pub async fn changed_members(
        &self,
        group: &Group,
        mut is_known: impl FnMut(&EncodedMembers) -> bool + Send,
        wait: Duration,
    ) -> Result<EncodedMembers, StoreError> {
        let shard = Shard::of(group);
        let started = self.store.now();
        let place = self.instance.place();
        // By the clock, and by what was waited: a clock can be set back.
        let mut waited = Duration::ZERO;
        let mut looks = 0;
        loop {
            looks += 1;
            let changes = self.instance.changes(shard);
            let now = self.store.now();
            let members = self.encoded_members(group, now).await?;
            let elapsed = now.since(started).max(waited);
            if place.is_none() || !is_known(&members) || looks == MAX_LOOKS || elapsed >= wait {
                return Ok(members);
            }
            // What counts no longer is built anew: where regions lag, what it lacked may have arrived. One that could not be built anew is
            // no reason to look at once.
            let kept = self.instance.kept(shard);
            let expires =
                kept.as_ref().map(|kept| kept.head.until.since(now)).filter(|expires| !expires.is_zero());
            // A revision from a clock that is ahead says nothing of when it was set.
            let stood =
                kept.and_then(|kept| now.system_time().duration_since(kept.head.set_at.system_time()).ok());
            let pace = stood.map_or(LOOK.1, |stood| (stood / 2).clamp(LOOK.0, LOOK.1));
            let look_within = expires.map_or(pace, |expires| expires.min(pace)).min(wait - elapsed);
            let look_at = waited + look_within;
            while waited < look_at && self.instance.changes(shard) == changes {
                let pause = (waited / 50).clamp(PAUSE.0, PAUSE.1).min(look_at - waited);
                if !self.store.pause(pause).await {
                    return Ok(members);
                }
                waited += pause;
            }
        }
    }
}

#[cfg(test)]
mod tests;
