//! What happens, as it is told.

use std::time::Duration;

use broker_fn::api::{Expected, Kind, Roster};

use crate::broker::BrokerError;
use crate::error::WaitingFor;
use crate::node::connection::{Answer, ConnectionError};
use crate::node::endpoint::Endpoint;
use crate::node::unusable::Unusable;
use crate::system::judge::{Unmet, Unproved};
use crate::system::members::System;
use crate::system::observe::Observed;
use crate::system::plan::Plan;

#[derive(Debug)]
pub enum Event<'a> {
    /// The run may take as long as this from now.
    Deadline(Duration),
    /// The broker has shown its roster.
    Roster {
        roster: &'a Roster,
        expected: Expected,
    },
    /// A node is new in the roster.
    Registered {
        kind: Kind,
        node: &'a Endpoint,
    },
    /// A node goes by another address than it registered.
    Announced {
        node: &'a Endpoint,
        /// What it calls itself.
        announced: &'a Endpoint,
    },
    Observed(&'a Observed),
    /// Something has to pass first.
    WaitingFor {
        what: &'a WaitingFor,
        /// The nodes that can't be used.
        nodes: &'a [(Endpoint, Unusable)],
    },
    /// The broker does not answer as it should, and may yet.
    NoBroker(&'a BrokerError),
    Plan(&'a Plan),
    Answered(&'a Answer<'a>),
    /// A node has not.
    Lost {
        kind: Kind,
        node: &'a Endpoint,
        error: &'a ConnectionError,
    },
    /// The system is not what it should be, yet.
    Unmet(&'a [Unmet]),
    Verified {
        system: &'a System,
        /// Since the last registration.
        took: Duration,
        /// `verified`, or `already configured; verified`.
        how: &'static str,
    },
    /// What could not be seen for lack of a right, of a system that is verified otherwise.
    Unproved(&'a [Unproved]),
    /// A look at the system has found this, node by node.
    Found(&'a [Unmet]),
    /// Something is not as it should be, but the run goes on.
    Warning(&'a str),
    /// Anything else that a person may want to know.
    Note(&'a str),
}
