//! One look at a system: the broker's roster, and what the servers themselves answer. It observes, decides
//! and verifies as a bootstrap does, and changes nothing.

use std::time::Duration;

use broker_fn::api::{Expected, Roster};
use tokio::time::{Instant, sleep};

use crate::broker::{Broker, REQUEST_TIMEOUT};
use crate::config::LookConfig;
use crate::error::{Failure, WaitingFor};
use crate::report::Report;
use crate::report::event::Event;
use crate::system::decide::{Decision, Request, SECOND_LOOK, decide};
use crate::system::judge::{Unmet, Unproved};
use crate::system::members::{SentinelMember, System};
use crate::system::observe::{Observed, observe};
use crate::system::servers::Servers;
use crate::system::timings::Phase;
use crate::system::verify::Verifier;

/// How long a look waits for data that is on its way, such as an answer to a `PING` or a part of the stream.
const LOOK: Duration = Duration::from_millis(500);

/// How long a system may take to be verified again after a node has restarted: Sentinels connect again once a
/// second.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// The time between two looks while a node restarts.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What one look at a system has found.
#[derive(Debug)]
pub struct Look {
    pub roster: Roster,
    /// How many nodes there must be.
    pub expected: Expected,
    pub observed: Observed,
    /// The checks that failed, node by node.
    pub unmet: Vec<Unmet>,
    /// The verified system, or what keeps it from being one.
    pub verdict: Result<System, Failure>,
}

/// Looks at a system, as often as it is asked to.
#[derive(Debug)]
pub struct Watcher<'a> {
    config: &'a LookConfig,
    report: &'a Report,
    broker: Broker,
    servers: Servers,
}

impl<'a> Watcher<'a> {
    /// Prepares to look. Nothing is looked at yet.
    ///
    /// # Errors
    ///
    /// If the operating system's certificates can't be read.
    pub fn new(config: &'a LookConfig, report: &'a Report) -> Result<Self, Failure> {
        Ok(Self {
            config,
            report,
            broker: Broker::new(&config.broker).map_err(Failure::Other)?,
            servers: config.nodes.connections(report),
        })
    }

    /// The connections that the looks use.
    #[must_use]
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Looks at the system.
    ///
    /// # Errors
    ///
    /// If there is no roster.
    pub async fn look(&self) -> Result<Look, Failure> {
        let look = self.look_once().await?;
        // The nodes were not all read at the same moment, so a refusal needs a second look.
        if matches!(look.verdict, Err(Failure::Refused(_))) {
            sleep(SECOND_LOOK).await;
            return self.look_once().await;
        }
        Ok(look)
    }

    /// Looks until the system is verified, or has not been for longer than a restart explains. This is for
    /// commands that change the roles.
    ///
    /// # Errors
    ///
    /// If there is no roster.
    pub async fn settled(&self) -> Result<Look, Failure> {
        let started = Instant::now();
        let mut reported = false;
        loop {
            let look = self.look().await?;
            let may_pass =
                matches!(look.verdict, Err(Failure::NotAsItShouldBe { .. } | Failure::NotReady { .. }));
            if !may_pass || started.elapsed() >= SETTLES_WITHIN {
                return Ok(look);
            }
            if !reported {
                reported = true;
                self.report.event("not verified at this moment: checking again");
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn look_once(&self) -> Result<Look, Failure> {
        let Self { config, report, broker, servers } = self;
        report.timings().enter(Phase::Observe);
        let roster = broker.roster(REQUEST_TIMEOUT).await.map_err(Failure::Broker)?;
        let expected = config.expected(&roster);
        report.tell(&Event::Roster { roster: &roster, expected });
        let observed = observe(servers, &roster).await;
        report.tell(&Event::Observed(&observed));
        report.timings().enter(Phase::Plan);
        let request = config.request(&roster);
        let missing = expected.missing(roster.redis.len(), roster.sentinels.len());
        let decision = decide(&observed, &request);
        report.timings().enter(Phase::Verify);
        let not_ready = |waiting_for| Failure::NotReady {
            waiting_for: Box::new(waiting_for),
            nodes: observed.problems(),
        };
        let (unmet, verdict) = match decision {
            // Before all nodes have registered, a plan may still change, so it is not reported. A refusal is.
            Decision::Refuse(refusal) => (Vec::new(), Err(Failure::Refused(refusal))),
            _ if !missing.is_nothing() => {
                let (redis, sentinels) = (missing.redis, missing.sentinels);
                (Vec::new(), Err(not_ready(WaitingFor::Registrations { redis, sentinels })))
            }
            Decision::Wait(wait) => (Vec::new(), Err(not_ready(WaitingFor::Nodes(wait)))),
            Decision::Proceed(plan) => {
                let (system, wanted) = (&plan.system, request.wanted());
                let verifier = Verifier {
                    servers,
                    system,
                    options: &wanted,
                    redis_settings: &request.redis_settings,
                    helps: false,
                };
                let found = verifier.verify(Instant::now() + LOOK).await;
                let unmet = match found {
                    Ok(mut unproved) => {
                        unproved.extend(other_names(system, &request));
                        report.reservations(system, &unproved);
                        Vec::new()
                    }
                    Err(unmet) => unmet,
                };
                let verdict = if plan.is_empty() && unmet.is_empty() {
                    Ok(plan.system)
                } else {
                    let commands = plan.commands().len();
                    Err(Failure::NotAsItShouldBe { commands, unmet: unmet.clone() })
                };
                (unmet, verdict)
            }
        };
        report.tell(&Event::Found(&unmet));
        Ok(Look { roster, expected, observed, unmet, verdict })
    }
}

/// A Sentinel does not show under which names it knows the servers' commands. A bootstrap always sets the
/// names.
fn other_names(system: &System, request: &Request) -> Vec<Unproved> {
    if request.renamed.is_empty() {
        return Vec::new();
    }
    let what = "that the Sentinel knows the renamed commands of the servers, which a failover needs \
         (`sentinel-runner bootstrap --rename-command` sets them)";
    let unproved =
        |sentinel: &SentinelMember| Unproved { right: None, what, node: sentinel.endpoint.clone() };
    system.sentinels.iter().map(unproved).collect()
}
