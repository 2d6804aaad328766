//! The roster, as it changes. The broker is asked to answer once it does; where it can't, or something in between does not wait so
//! long, it is asked time and again.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use broker_fn::api::Roster;
use futures::FutureExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Broker, BrokerError, NOT_ASKED_FOR, REQUEST_TIMEOUT, Told};

/// How many seconds the broker is asked to wait, less than proxies do.
const WAIT: u64 = 20;

/// The roster as the broker has told it last.
pub struct RosterWatch {
    broker: Arc<Broker>,
    told: Option<Told>,
    /// Whether that, or the failure, has yet to be taken.
    is_news: bool,
    failed: Option<BrokerError>,
    /// Whether the last answer was none.
    is_failing: bool,
    asked: Option<Asked>,
    /// Not before this is it asked for again.
    next: Instant,
    /// How many seconds the broker is asked to wait: half as many each time that nothing comes of it.
    wait: u64,
    pace: Pace,
}

/// A request under way.
struct Asked {
    at: Instant,
    /// How many seconds the broker waits.
    wait: Option<u64>,
    answer: Pin<Box<dyn Future<Output = Result<Option<Told>, BrokerError>> + Send>>,
}

impl RosterWatch {
    /// Nothing is asked yet. Where the broker does not wait, it is asked at about this interval.
    pub fn new(broker: Arc<Broker>, interval: Duration) -> Self {
        let next = Instant::now();
        let pace = Pace::new(interval);
        Self {
            broker,
            told: None,
            is_news: false,
            failed: None,
            is_failing: false,
            asked: None,
            next,
            wait: WAIT,
            pace,
        }
    }

    /// The roster as it is now: as long as the broker waits for it to change, that is the one that it told last.
    ///
    /// # Errors
    ///
    /// When the broker can't be reached within `patience`, refuses, or answers something else.
    pub async fn current(&mut self, patience: Duration) -> Result<Roster, BrokerError> {
        if let Some(answer) = self.asked.as_mut().and_then(|asked| asked.answer.as_mut().now_or_never()) {
            self.take(answer);
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let is_waited_for = self.asked.as_ref().is_some_and(|asked| asked.wait.is_some());
        match &self.told {
            Some(told) if self.is_news || is_waited_for => {
                self.is_news = false;
                Ok(told.roster.clone())
            }
            _ => {
                self.asked = None;
                let answer = self.broker.ask(None, None, patience).await;
                let now = Instant::now();
                self.is_failing = answer.is_err();
                self.next = now + self.pace.next(now);
                let told = answer?.ok_or_else(|| self.broker.not_a_roster(NOT_ASKED_FOR.into()))?;
                self.tell(told.clone());
                self.is_news = false;
                Ok(told.roster)
            }
        }
    }

    /// Waits until the broker tells another roster or fails, or until then.
    pub async fn changed(&mut self, until: Instant) {
        while !self.is_news && self.failed.is_none() && Instant::now() < until {
            let asked = match &mut self.asked {
                Some(asked) => asked,
                None if self.next >= until => return sleep_until(until).await,
                None => {
                    sleep_until(self.next).await;
                    let known = self.told.as_ref().and_then(|told| told.tag.clone());
                    let wait = (known.is_some() && self.wait > 0 && !self.is_failing).then_some(self.wait);
                    let broker = Arc::clone(&self.broker);
                    let answer = async move { broker.ask(known.as_deref(), wait, REQUEST_TIMEOUT).await };
                    self.asked.insert(Asked { at: Instant::now(), wait, answer: Box::pin(answer) })
                }
            };
            let Ok(answer) = timeout_at(until, asked.answer.as_mut()).await else { return };
            self.take(answer);
        }
    }

    /// Takes the answer to what was asked.
    fn take(&mut self, answer: Result<Option<Told>, BrokerError>) {
        let Some(Asked { at, wait, .. }) = self.asked.take() else { return };
        let waited = wait.is_some_and(|seconds| at.elapsed() >= Duration::from_secs(seconds) / 2);
        // That it is back is news too.
        self.is_news |= answer.is_ok() && self.is_failing && self.told.is_some();
        self.is_failing = answer.is_err();
        let is_new = match answer {
            Ok(Some(told)) => self.tell(told),
            Ok(None) => false,
            Err(_) if wait.is_some() => {
                // Something in between may not wait so long. Whether the broker is there, the next one tells, which it answers at once.
                self.wait /= 2;
                true
            }
            Err(error) => {
                self.failed = Some(error);
                false
            }
        };
        let now = Instant::now();
        self.next = if waited || is_new && wait.is_some() { now } else { now + self.pace.next(now) };
    }

    /// Whether it is another roster, by what the broker knows it by.
    fn tell(&mut self, told: Told) -> bool {
        let registered = |told: &Told| (told.roster.redis.len(), told.roster.sentinels.len());
        if self.told.as_ref().map(registered) != Some(registered(&told)) {
            self.pace.reset();
        }
        let is_new = told.tag.is_none() || self.told.as_ref().is_none_or(|before| before.tag != told.tag);
        self.told = Some(told);
        self.is_news |= is_new;
        is_new
    }
}

/// How long to wait between two looks at the roster: a fiftieth of the time that nothing has changed for. Nodes that start
/// together register within moments of each other, and the last of them is what everybody waits for.
struct Pace {
    interval: Duration,
    changed: Instant,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self { interval, changed: Instant::now() }
    }

    fn reset(&mut self) {
        self.changed = Instant::now();
    }

    /// A twentieth of the interval at least, and twice the interval at most.
    fn next(&self, now: Instant) -> Duration {
        ((now - self.changed) / 50).clamp(self.interval / 20, self.interval * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_slows_down_while_nothing_changes() {
        let mut pace = Pace::new(Duration::from_millis(50));
        let next = |pace: &Pace, seconds: f64| pace.next(pace.changed + Duration::from_secs_f64(seconds));
        assert_eq!(next(&pace, 0.0), Duration::from_micros(2500));
        assert_eq!(next(&pace, 2.5), Duration::from_millis(50));
        assert_eq!(next(&pace, 60.0), Duration::from_millis(100));
        let before = pace.changed;
        pace.reset();
        assert!(pace.changed >= before);
        assert_eq!(next(&pace, 0.0), Duration::from_micros(2500));
    }
}
