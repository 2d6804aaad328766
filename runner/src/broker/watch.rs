//! Watches the roster for changes. The broker is asked to answer as soon as the roster changes. If the broker
//! can't wait, or a proxy in between does not wait that long, the roster is polled.

use std::fmt;
use std::future::pending;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use broker_fn::api::Roster;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Broker, BrokerError, REQUEST_TIMEOUT, TaggedRoster};

/// How many seconds the broker is asked to wait: less than the timeout of common proxies.
const WAIT: u64 = 20;

/// The roster that the broker sent last.
pub struct RosterWatch {
    ask: Ask,
    last_roster: Option<TaggedRoster>,
    /// Whether the caller has not taken the roster in `last_roster` yet.
    is_news: bool,
    failed: Option<BrokerError>,
    /// Which kind of request failed last, if the last one failed.
    failing: Option<Failing>,
    asked: Option<PendingRequest>,
    /// The earliest time of the next request.
    next: Instant,
    /// How many seconds the broker is asked to wait.
    wait: u64,
    /// Whether the broker waits for a change, as far as is known.
    waits: bool,
    pace: Pace,
}

/// Requests the roster. Arguments: the tag of the known roster; how many seconds the broker may wait for
/// another roster; and how long the request may take in addition.
type Ask = Box<dyn Fn(Option<String>, Option<u64>, Duration) -> PendingAnswer + Send + Sync>;
type PendingAnswer = Pin<Box<dyn Future<Output = Result<TaggedRoster, BrokerError>> + Send>>;

/// A request that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Plain,
    /// A request that lets the broker wait for a change.
    Waiting,
}

/// A request in progress.
struct PendingRequest {
    at: Instant,
    /// How many seconds the broker may wait.
    wait: Option<u64>,
    answer: PendingAnswer,
}

impl fmt::Debug for RosterWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RosterWatch")
            .field("last_roster", &self.last_roster)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl RosterWatch {
    /// Sends no request yet. If the broker does not wait, it is polled at intervals in this range. The
    /// interval grows while nothing changes.
    pub fn new(broker: Arc<Broker>, intervals: RangeInclusive<Duration>) -> Self {
        let ask = move |known: Option<String>, wait, patience| -> PendingAnswer {
            let broker = Arc::clone(&broker);
            // The request goes on in a task even if no caller polls for the answer, and is aborted with the
            // future.
            let mut request = JoinSet::new();
            request.spawn(async move { broker.ask(known.as_deref(), wait, patience).await });
            Box::pin(async move {
                match request.join_next().await {
                    Some(Ok(answer)) => answer,
                    // The task is aborted only when `request` is dropped, so the error is a panic.
                    Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                    None => pending().await,
                }
            })
        };
        Self::asking(Box::new(ask), intervals)
    }

    fn asking(ask: Ask, intervals: RangeInclusive<Duration>) -> Self {
        let next = Instant::now();
        Self {
            ask,
            last_roster: None,
            is_news: false,
            failed: None,
            failing: None,
            asked: None,
            next,
            wait: WAIT,
            waits: true,
            pace: Pace { intervals, changed: next },
        }
    }

    /// The current roster. While the broker waits for a change, this is the roster that it sent last.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached within `patience`, refuses, or answers something else.
    pub async fn current(&mut self, patience: Duration) -> Result<Roster, BrokerError> {
        if let Some(asked) = &mut self.asked
            && let Some(answer) = asked.answer.as_mut().now_or_never()
        {
            let (at, wait) = (asked.at, asked.wait);
            self.take(at, wait, answer);
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let is_waited_for = self.asked.as_ref().is_some_and(|asked| asked.wait.is_some());
        if let Some(last) = self.last_roster.as_ref().filter(|_| self.is_news || is_waited_for) {
            self.is_news = false;
            return Ok(last.roster.clone());
        }
        self.asked = None;
        let asked_at = Instant::now();
        let answer = (self.ask)(None, None, patience).await;
        let roster = answer.as_ref().map(|tagged| tagged.roster.clone()).map_err(Clone::clone);
        self.take(asked_at, None, answer);
        // The caller gets the roster or the error from this call.
        (self.is_news, self.failed) = (false, None);
        if self.waits && roster.is_ok() {
            // A broker that waits can be asked to wait at once.
            self.next = Instant::now();
        }
        roster
    }

    /// Waits until the broker sends another roster, or fails, or until `until`.
    pub async fn changed(&mut self, until: Instant) {
        while !self.is_news && self.failed.is_none() && Instant::now() < until {
            let asked = match &mut self.asked {
                Some(asked) => asked,
                None if self.next >= until => return sleep_until(until).await,
                None => {
                    sleep_until(self.next).await;
                    let known = self.last_roster.as_ref().and_then(|last_roster| last_roster.tag.clone());
                    let can_wait = known.is_some() && self.wait > 0 && self.failing.is_none();
                    let wait = can_wait.then_some(self.wait);
                    let answer = (self.ask)(known, wait, REQUEST_TIMEOUT);
                    self.asked.insert(PendingRequest { at: Instant::now(), wait, answer })
                }
            };
            let Ok(answer) = timeout_at(until, asked.answer.as_mut()).await else { return };
            let (at, wait) = (asked.at, asked.wait);
            self.take(at, wait, answer);
        }
    }

    /// Handles the answer to a request that was sent at `at`, and that let the broker wait for `wait`
    /// seconds.
    fn take(&mut self, at: Instant, wait: Option<u64>, answer: Result<TaggedRoster, BrokerError>) {
        self.asked = None;
        let before = self.failing;
        let (mut is_new, mut is_at_once) = (false, false);
        match answer {
            Err(error) if !error.is_not_modified() || self.last_roster.is_none() => match wait {
                // The next request is without a wait, and shows whether the broker is reachable.
                Some(_) => (self.failing, is_at_once) = (Some(Failing::Waiting), true),
                None => (self.failing, self.failed, self.wait) = (Some(Failing::Plain), Some(error), WAIT),
            },
            answer => {
                self.failing = None;
                if let Ok(roster) = answer {
                    is_new = self.keep(roster);
                }
                match before {
                    // The broker is reachable: something in between does not wait that long.
                    Some(Failing::Waiting) => self.wait /= 2,
                    // The caller also wants to know that the broker is back.
                    Some(Failing::Plain) => self.is_news = true,
                    None => {}
                }
            }
        }
        let now = Instant::now();
        if let Some(seconds) = wait
            && self.failing.is_none()
            && !is_new
        {
            self.waits = now - at >= Duration::from_secs(seconds) / 2;
            if self.waits {
                // The proxy with the short limit may be gone.
                self.wait = WAIT.min(2 * self.wait);
            }
        }
        // Not at once after an immediate answer: two broker instances with different data could answer in
        // turn, and each answer would be new.
        let is_answered = now - at >= *self.pace.intervals.start();
        is_at_once |= self.waits && wait.is_some() && self.failing.is_none() && is_answered;
        self.next = if is_at_once { now } else { now + self.pace.next(now) };
    }

    /// Keeps the roster. Returns whether it differs from the last one: by its tag, or if there is none, by
    /// everything except when nodes were last seen.
    fn keep(&mut self, tagged: TaggedRoster) -> bool {
        let registered = |tagged: &TaggedRoster| (tagged.roster.redis.len(), tagged.roster.sentinels.len());
        if self.last_roster.as_ref().map(registered) != Some(registered(&tagged)) {
            self.pace.reset();
        }
        let is_new = self.last_roster.as_ref().is_none_or(|before| match (&before.tag, &tagged.tag) {
            (Some(before), Some(now)) => before != now,
            _ => but_last_seen(&before.roster) != but_last_seen(&tagged.roster),
        });
        self.last_roster = Some(tagged);
        self.is_news |= is_new;
        is_new
    }
}

fn but_last_seen(roster: &Roster) -> Roster {
    let mut roster = roster.clone();
    for node in roster.redis.iter_mut().chain(&mut roster.sentinels) {
        node.last_seen = node.registered_at;
    }
    roster
}

/// How long to wait between two requests for the roster: a fiftieth of the time since the last change. Nodes
/// that start together register shortly after each other, and the run waits for the last of them.
#[derive(Debug)]
struct Pace {
    intervals: RangeInclusive<Duration>,
    changed: Instant,
}

impl Pace {
    fn reset(&mut self) {
        self.changed = Instant::now();
    }

    fn next(&self, now: Instant) -> Duration {
        ((now - self.changed) / 50).clamp(*self.intervals.start(), *self.intervals.end())
    }
}

#[cfg(test)]
mod tests;
