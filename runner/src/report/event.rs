//! The events of a run, as they are reported.

use std::time::Duration;

use broker_fn::api::{Expected, Kind, Roster};

use crate::broker::BrokerError;
use crate::error::WaitingFor;
use crate::node::connection::{ConnectionError, PipelineAnswer};
use crate::node::endpoint::Endpoint;
use crate::node::unusable::Unusable;
use crate::system::judge::{Unmet, Unproved};
use crate::system::members::System;
use crate::system::observe::Observed;
use crate::system::plan::Plan;

#[derive(Debug)]
pub enum Event<'a> {
    /// How long the run may still take.
    Deadline(Duration),
    /// The broker has sent its roster.
    Roster {
        roster: &'a Roster,
        expected: Expected,
    },
    /// A node is new in the roster.
    Registered {
        kind: Kind,
        node: &'a Endpoint,
    },
    /// A node announces another address than the registered one.
    Announced {
        node: &'a Endpoint,
        /// The address that the node announces.
        announced: &'a Endpoint,
    },
    Observed(&'a Observed),
    /// The run waits for something.
    WaitingFor {
        what: &'a WaitingFor,
        /// The nodes that can't be used.
        nodes: &'a [(Endpoint, Unusable)],
    },
    /// The broker does not answer as expected. A retry may succeed.
    NoBroker(&'a BrokerError),
    Plan(&'a Plan),
    Answered(&'a PipelineAnswer<'a>),
    /// A node has not answered.
    Lost {
        kind: Kind,
        node: &'a Endpoint,
        error: &'a ConnectionError,
    },
    /// The system is not verified yet.
    Unmet(&'a [Unmet]),
    Verified {
        system: &'a System,
        /// Since the last registration.
        took: Duration,
        /// `verified`, or `already configured; verified`.
        how: &'static str,
    },
    /// The checks of a verified system that were impossible because a right is missing.
    Unproved(&'a [Unproved]),
    /// What a check of the system found wrong, per node.
    Found(&'a [Unmet]),
    /// A problem that does not end the run.
    Warning(&'a str),
    /// Other information for a person.
    Note(&'a str),
}
