//! The clock is paused: it advances only while all tasks wait. The broker follows a script.

use std::collections::VecDeque;
use std::sync::Mutex;

use broker_fn::api::{Expected, Missing, Registration, Timestamp};
use reqwest::StatusCode;
use tokio::time::sleep;

use super::*;
use crate::broker::RequestUrl;

/// What the broker does with one request.
#[derive(Debug, Clone, Copy)]
enum Does {
    /// Sends a roster of so many servers, with that number as its tag, after so many milliseconds.
    Tells(usize, u64),
    /// The roster has not changed. A request without a tag gets the last roster again, if there was one.
    NotModified(u64),
    /// As `Tells`, from a broker without tags.
    TellsWithoutTag(usize, u64),
    Fails(u64),
}

use Does::*;

/// The requests: the tag of the known roster, and how many seconds to wait.
type Questions = Arc<Mutex<Vec<(Option<String>, Option<u64>)>>>;

/// A watch on a broker that follows this script, and never answers after its end.
fn watch(script: impl IntoIterator<Item = Does>) -> (RosterWatch, Questions) {
    let script = Mutex::new(script.into_iter().collect::<VecDeque<_>>());
    let questions = Questions::default();
    let asked = Arc::clone(&questions);
    let last = Mutex::new(None);
    let ask = move |known: Option<String>, wait, _| -> PendingAnswer {
        let mut does = script.lock().unwrap().pop_front();
        let mut last = last.lock().unwrap();
        match does {
            Some(Tells(servers, _)) => *last = Some(servers),
            Some(NotModified(after))
                if known.is_none()
                    && let Some(servers) = *last =>
            {
                does = Some(Tells(servers, after));
            }
            _ => {}
        }
        asked.lock().unwrap().push((known, wait));
        Box::pin(async move {
            match does {
                None => pending().await,
                Some(Tells(servers, after)) => {
                    sleep(Duration::from_millis(after)).await;
                    Ok(TaggedRoster { roster: roster(servers), tag: Some(servers.to_string()) })
                }
                Some(TellsWithoutTag(servers, after)) => {
                    sleep(Duration::from_millis(after)).await;
                    Ok(TaggedRoster { roster: roster(servers), tag: None })
                }
                Some(NotModified(after)) => {
                    sleep(Duration::from_millis(after)).await;
                    Err(status(StatusCode::NOT_MODIFIED))
                }
                Some(Fails(after)) => {
                    sleep(Duration::from_millis(after)).await;
                    Err(status(StatusCode::BAD_GATEWAY))
                }
            }
        })
    };
    let intervals = Duration::from_millis(10)..=Duration::from_millis(100);
    (RosterWatch::asking(Box::new(ask), intervals), questions)
}

fn status(status: StatusCode) -> BrokerError {
    let url = RequestUrl { url: "http://broker/".into(), health_check: "http://broker/healthcheck".into() };
    BrokerError::Status { url, status, detail: String::new(), retry_after: None }
}

fn roster(servers: usize) -> Roster {
    let node =
        |number: usize| Registration::new(format!("10.0.0.{number}:6379").parse().unwrap(), Timestamp::now());
    Roster {
        group: "mymaster".parse().unwrap(),
        ready: false,
        expected: Expected { redis: 2, sentinels: 3, quorum: 2 },
        missing: Missing { redis: 0, sentinels: 3 },
        redis: (1..=servers).map(node).collect(),
        sentinels: vec![],
        outcome: None,
        last_verified: None,
    }
}

impl RosterWatch {
    /// The number of servers in the current roster.
    async fn servers(&mut self) -> Result<usize, BrokerError> {
        Ok(self.current(REQUEST_TIMEOUT).await?.redis.len())
    }

    /// Waits for a change, up to so many seconds. Returns how long that took, in milliseconds.
    async fn waited(&mut self, seconds: u64) -> u128 {
        let started = Instant::now();
        self.changed(started + Duration::from_secs(seconds)).await;
        started.elapsed().as_millis()
    }
}

fn waits(questions: &Questions) -> Vec<Option<u64>> {
    questions.lock().unwrap().iter().map(|(_, wait)| *wait).collect()
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_waits_is_asked_once_for_each_change() {
    let (mut watch, questions) = watch([Tells(0, 1), NotModified(20_000), Tells(1, 7_000), Tells(2, 3)]);
    assert_eq!(watch.servers().await.unwrap(), 0);
    assert_eq!(watch.waited(60).await, 27_000);
    assert_eq!(watch.servers().await.unwrap(), 1);
    assert_eq!(watch.waited(60).await, 3);
    assert_eq!(watch.servers().await.unwrap(), 2);
    assert_eq!(watch.waited(5).await, 5_000);
    let known = |number: &str| (Some(number.to_owned()), Some(WAIT));
    assert_eq!(*questions.lock().unwrap(), [(None, None), known("0"), known("0"), known("1"), known("2")]);
}

#[tokio::test(start_paused = true)]
async fn while_the_broker_waits_the_roster_is_the_one_that_it_told_last() {
    let (mut watch, questions) = watch([Tells(0, 1), Tells(1, 10_000)]);
    assert_eq!(watch.servers().await.unwrap(), 0);
    for _ in 0..100 {
        // A caller that observes nodes between two rosters asks like this.
        let started = Instant::now();
        watch.changed(started + Duration::from_millis(50)).await;
        assert_eq!(watch.servers().await.unwrap(), 0);
    }
    assert_eq!(questions.lock().unwrap().len(), 2);
    // The broker answers while nothing polls the watch.
    sleep(Duration::from_secs(10)).await;
    assert_eq!(watch.servers().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_answers_at_once_is_asked_at_intervals() {
    for answer in [NotModified(1), Tells(0, 1)] {
        let (mut watch, questions) = watch([Tells(0, 1)].into_iter().chain([answer; 1000]));
        assert_eq!(watch.servers().await.unwrap(), 0);
        assert_eq!(watch.waited(10).await, 10_000);
        let asked = questions.lock().unwrap().len();
        assert!((90..250).contains(&asked), "{asked}");
        // The current roster comes from a new request.
        assert_eq!(watch.servers().await.unwrap(), 0);
        assert!(waits(&questions).ends_with(&[None]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_without_tags_is_polled_and_repeats_are_no_news() {
    let (mut watch, questions) =
        watch([TellsWithoutTag(0, 1); 30].into_iter().chain([TellsWithoutTag(1, 1)]));
    assert_eq!(watch.servers().await.unwrap(), 0);
    assert!((300..2000).contains(&watch.waited(60).await));
    assert_eq!(watch.servers().await.unwrap(), 1);
    assert!(questions.lock().unwrap().iter().all(|question| *question == (None, None)));
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_gives_up_sooner_shortens_the_wait() {
    let gives_up = [Fails(700), NotModified(1)];
    let (mut watch, questions) = watch(
        [Tells(0, 1)].into_iter().chain([gives_up; 5].into_iter().flatten()).chain([NotModified(1); 1000]),
    );
    assert_eq!(watch.servers().await.unwrap(), 0);
    assert_eq!(watch.waited(10).await, 10_000);
    let asked: Vec<_> = waits(&questions).into_iter().flatten().collect();
    assert_eq!(asked, [20, 10, 5, 2, 1]);
    assert!(watch.failed.is_none(), "it was there all the time");
}

#[tokio::test(start_paused = true)]
async fn what_gave_up_once_is_tried_again() {
    let script = [Tells(0, 1), Fails(700), NotModified(1), NotModified(10_000), NotModified(20_000)];
    let (mut watch, questions) = watch(script);
    assert_eq!(watch.servers().await.unwrap(), 0);
    watch.waited(40).await;
    assert_eq!(waits(&questions), [None, Some(20), None, Some(10), Some(20), Some(20)]);
}

#[tokio::test(start_paused = true)]
async fn that_nothing_has_changed_is_no_answer_to_who_knows_nothing() {
    let (mut watch, _) = watch([NotModified(1), Tells(1, 1)]);
    assert!(watch.servers().await.is_err());
    assert_eq!(watch.servers().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_comes_back_is_news_and_is_waited_on_again() {
    let (mut watch, questions) =
        watch([Tells(0, 1), Fails(500), Fails(1), Fails(1), NotModified(1), NotModified(20_000)]);
    assert_eq!(watch.servers().await.unwrap(), 0);
    for _ in 0..2 {
        watch.waited(60).await;
        assert!(watch.servers().await.is_err());
    }
    assert!(watch.waited(60).await < 200);
    assert_eq!(watch.servers().await.unwrap(), 0);
    watch.waited(30).await;
    assert_eq!(waits(&questions), [None, Some(20), None, None, None, Some(20), Some(20)]);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_loses_no_answer() {
    let (mut watch, questions) = watch([Tells(0, 1), Tells(1, 1_000)]);
    assert_eq!(watch.servers().await.unwrap(), 0);
    for _ in 0..9 {
        let far = Instant::now() + Duration::from_secs(60);
        assert!(tokio::time::timeout(Duration::from_millis(100), watch.changed(far)).await.is_err());
    }
    assert_eq!(watch.waited(60).await, 100);
    assert_eq!(watch.servers().await.unwrap(), 1);
    assert_eq!(questions.lock().unwrap().len(), 2);
}

#[test]
fn the_pace_slows_down_while_nothing_changes() {
    let intervals = Duration::from_micros(2500)..=Duration::from_millis(100);
    let mut pace = Pace { intervals, changed: Instant::now() };
    let next = |pace: &Pace, seconds: f64| pace.next(pace.changed + Duration::from_secs_f64(seconds));
    assert_eq!(next(&pace, 0.0), Duration::from_micros(2500));
    assert_eq!(next(&pace, 2.5), Duration::from_millis(50));
    assert_eq!(next(&pace, 60.0), Duration::from_millis(100));
    let before = pace.changed;
    pace.reset();
    assert!(pace.changed >= before);
    assert_eq!(next(&pace, 0.0), Duration::from_micros(2500));
}
