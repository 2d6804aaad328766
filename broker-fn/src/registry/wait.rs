//! Waiting for a roster to change. A change by another request of the same instance is seen within
//! milliseconds, without a read of the store. A change by another instance is seen by a look at the revision
//! now and then.

use std::time::Duration;

use super::keys::Shard;
use super::{EncodedMembers, Registry, Store, StoreError};
use crate::api::Group;

/// How long after a look at the store the next one follows: half of the revision's age, within these bounds.
/// Nodes that start together register within moments of each other. A host starts another instance as soon
/// as a request comes while the first instance is at work, so their registrations come by either.
const LOOK: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(1200));

/// If other groups change all the time, the revision is always new. Then the next look follows after this
/// part of the time waited so far.
const LOOK_PART: u32 = 8;

/// How many times one request reads the revision at most, even if the store changes all the time.
const MAX_LOOKS: usize = 64;

/// The pause between two looks at whether this instance has changed something: a fiftieth of the time waited
/// so far, within these bounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

impl<S: Store> Registry<S> {
    /// The members of `group`, encoded, as soon as they are not `known`, or once this time has passed. At
    /// once if too many requests wait already, or if this host can't wait.
    ///
    /// # Errors
    ///
    /// Like [`Self::members`].
    pub async fn changed_members(
        &self,
        group: &Group,
        mut is_known: impl FnMut(&EncodedMembers) -> bool + Send,
        wait: Duration,
    ) -> Result<EncodedMembers, StoreError> {
        let shard = Shard::of(group);
        let started = self.store.now();
        let place = self.instance.place();
        // Both the clock and the pauses are used: a clock can be set back, and a pause takes longer than asked.
        let elapsed = |paused: Duration| self.store.now().since(started).max(paused);
        let (mut paused, mut looks) = (Duration::ZERO, 0);
        loop {
            looks += 1;
            let changes = self.instance.changes(shard);
            let now = self.store.now();
            let members = self.encoded_members(group, now).await?;
            let mut waited = elapsed(paused);
            if place.is_none() || !is_known(&members) || looks == MAX_LOOKS || waited >= wait {
                return Ok(members);
            }
            // An expired snapshot is built again: if regions lag, a key that it lacked may have arrived. If
            // that fails, the expired snapshot does not shorten the pause.
            let kept = self.instance.kept(shard);
            let expires =
                kept.as_ref().map(|kept| kept.head.until.since(now)).filter(|expires| !expires.is_zero());
            // If a clock that is ahead has set the revision, its age is unknown.
            let stood =
                kept.and_then(|kept| now.system_time().duration_since(kept.head.set_at.system_time()).ok());
            let least = (waited / LOOK_PART).clamp(LOOK.0, LOOK.1);
            let pace = stood.map_or(LOOK.1, |stood| (stood / 2).clamp(least, LOOK.1));
            let look_within = expires.map_or(pace, |expires| expires.min(pace)).min(wait - waited);
            let look_at = waited + look_within;
            while waited < look_at && self.instance.changes(shard) == changes {
                let pause = (waited / 50).clamp(PAUSE.0, PAUSE.1).min(look_at - waited);
                if !self.store.pause(pause).await {
                    return Ok(members);
                }
                paused += pause;
                waited = elapsed(paused);
            }
        }
    }
}

#[cfg(test)]
mod tests;
